//! A private key that anyone may read is told, with its mode. The one test of its program: another
//! thread could be the first at the line that is looked for, and without this one's log.
#![allow(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

mod common;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use pillion_certs::load::load;
use rustls_pki_types::UnixTime;

#[test]
fn a_key_that_anyone_may_read_is_told_with_its_mode() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let ca = common::authority(common::DOMAIN);
    let own = common::svid(&ca, &format!("spiffe://{}/a", common::DOMAIN));
    common::write(dir.path(), &own, &ca);
    let files = common::files_in(dir.path());
    for (mode, told) in [(0o600, false), (0o640, false), (0o644, true), (0o4404, true)] {
        fs::set_permissions(path("tls.key"), Permissions::from_mode(mode)).unwrap();
        let log = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(Arc::new(File::create(path("log")).unwrap()))
            .finish();
        tracing::subscriber::with_default(log, || load(&files, UnixTime::now())).unwrap();
        let log = fs::read_to_string(path("log")).unwrap();
        assert_eq!(log.contains("anyone may read the private key"), told, "{mode:o}: {log}");
        assert_eq!(log.ends_with(&format!("mode={:o}\n", mode & 0o777)), told, "{mode:o}: {log}");
        assert_eq!(log.contains("tls.key"), told, "{mode:o}: {log}");
    }
}
