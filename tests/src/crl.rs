//! The file of revocation lists that sidecars read.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Failure, MeshOptions, Testbed, complete};

/// One file with the list of the mesh's authority, replaced in one step at each change.
#[derive(Debug)]
pub struct RevocationFile<'a> {
    bed: &'a Testbed,
    path: PathBuf,
}

impl<'a> RevocationFile<'a> {
    /// A list that revokes nothing yet.
    ///
    /// # Errors
    /// `pillion-certs` is missing or fails.
    pub fn new(bed: &'a Testbed) -> Result<Self, Failure> {
        let file = Self { bed, path: bed.directory().join("crl.pem") };
        file.renew("1d")?;
        Ok(file)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The options with this file.
    #[must_use]
    pub fn given_to(&self, options: MeshOptions) -> MeshOptions {
        options.env("PILLION_TLS_CRL_FILE", &self.path.display().to_string())
    }

    /// Revokes the certificate in a directory that has `tls.crt`.
    ///
    /// # Errors
    /// `pillion-certs` fails.
    pub fn revoke(&self, directory: &Path) -> Result<(), Failure> {
        let mut command = self.command("1d")?;
        command.arg("--cert").arg(directory.join("tls.crt"));
        command.args(["--reason", "key-compromise"]);
        complete(&mut command).map(drop)
    }

    /// Writes the list anew, with an end that is so far away.
    ///
    /// # Errors
    /// `pillion-certs` fails.
    pub fn renew(&self, next_update: &str) -> Result<(), Failure> {
        complete(&mut self.command(next_update)?).map(drop)
    }

    fn command(&self, next_update: &str) -> Result<Command, Failure> {
        let mut command = Command::new(self.bed.settings().binary("pillion-certs")?);
        command.args(["revoke", "--next-update", next_update]);
        command.arg("--ca").arg(self.bed.ca()?).arg("--out").arg(&self.path);
        Ok(command)
    }
}
