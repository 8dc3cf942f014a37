//! The command line: what it takes, what it writes, and how it ends.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use pillion_certs::inspect::{Broken, Report, inspect};
use pillion_certs::issue::{self, CertificateAuthority, NewFile, WriteError};
use pillion_certs::revoke::{RevocationReason, Serial, revocation_list};
use pillion_certs::spiffe::{SpiffeId, TrustDomain};
use rustls_pki_types::UnixTime;
use serde::Serialize;
use zeroize::Zeroizing;

const EXIT_CODES: &str = "\
Exit codes:
  0  done; for inspect: every certificate keeps every rule
  1  not done, or a certificate breaks a rule; the reason is on standard error
  2  the command line is wrong";

/// Make a certificate authority, issue X.509-SVIDs, and check certificates against the SPIFFE rules.
#[derive(Debug, Parser)]
#[command(name = "pillion-certs", version, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a self-signed authority for a trust domain: DIR/ca.crt and DIR/ca.key
    Ca(Ca),
    /// Issue an SVID with a fresh key: DIR/tls.crt, DIR/tls.key and DIR/ca.crt
    Issue(Issue),
    /// Write or renew an authority's revocation list, with these certificates in it
    Revoke(Revoke),
    /// Show certificates and revocation lists in PEM files, and every rule that they break
    Inspect(Inspect),
}

#[derive(Debug, Args)]
struct Ca {
    /// The trust domain, for example example.org (without spiffe://)
    #[arg(long, value_name = "DOMAIN")]
    trust_domain: TrustDomain,
    /// Where to write; made if it isn't there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How long it is valid: a number with s, m, h or d
    #[arg(long, value_name = "DURATION", default_value = "365d", value_parser = duration)]
    ttl: Duration,
    /// Replace an authority that is there: all that it issued stops being trusted
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
struct Issue {
    /// The authority's directory, with ca.crt and ca.key
    #[arg(long, value_name = "DIR")]
    ca: PathBuf,
    /// The identity, for example spiffe://example.org/ns/shop/sa/cart
    #[arg(long, value_name = "SPIFFE-ID")]
    id: SpiffeId,
    /// Where to write; made if it isn't there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How long it is valid: a number with s, m, h or d
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    ttl: Duration,
    /// Write key and chain as one file, DIR/credentials.pem, instead of two
    #[arg(long)]
    bundle: bool,
}

#[derive(Debug, Args)]
struct Revoke {
    /// The authority's directory, with ca.crt and ca.key
    #[arg(long, value_name = "DIR")]
    ca: PathBuf,
    /// The list, PEM; one that is there is added to
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// A certificate to revoke, by its file (the first in it); may be given several times
    #[arg(long, value_name = "FILE")]
    cert: Vec<PathBuf>,
    /// A certificate to revoke, by its serial number in hex; may be given several times
    #[arg(long, value_name = "HEX")]
    serial: Vec<Serial>,
    /// Why, for those that are added now
    #[arg(long, value_enum)]
    reason: Option<Reason>,
    /// When the list ends, from now: a number with s, m, h or d. Renew it before
    #[arg(long, value_name = "DURATION", default_value = "7d", value_parser = duration)]
    next_update: Duration,
}

/// Why a certificate is revoked (RFC 5280, 5.3.1).
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Reason {
    KeyCompromise,
    CaCompromise,
    AffiliationChanged,
    Superseded,
    CessationOfOperation,
    PrivilegeWithdrawn,
}

impl From<Reason> for RevocationReason {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::KeyCompromise => Self::KeyCompromise,
            Reason::CaCompromise => Self::CaCompromise,
            Reason::AffiliationChanged => Self::AffiliationChanged,
            Reason::Superseded => Self::Superseded,
            Reason::CessationOfOperation => Self::CessationOfOperation,
            Reason::PrivilegeWithdrawn => Self::PrivilegeWithdrawn,
        }
    }
}

#[derive(Debug, Args)]
struct Inspect {
    /// PEM files: a chain (leaf first), a trust bundle or revocation lists
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Also verify each chain against these authorities, as a peer would
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// With --ca: hold the chains against these revocation lists, too
    #[arg(long, value_name = "FILE", requires = "ca")]
    crl: Option<PathBuf>,
    /// The form of the report
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{}: {source}; check that it exists and may be read", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: {source}; choose a directory that may be written", .path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("{} is there already; --force replaces it, and all that it issued stops being trusted", .0.display())]
    AuthorityExists(PathBuf),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Issue(#[from] issue::IssueError),
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
}

/// Runs a command; errors go to standard error, one line each.
pub(crate) fn run(cli: &Cli) -> ExitCode {
    let done = match &cli.command {
        Command::Ca(command) => make_ca(command).map(|()| true),
        Command::Issue(command) => issue_svid(command).map(|()| true),
        Command::Revoke(command) => revoke(command).map(|()| true),
        Command::Inspect(command) => inspect_files(command),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // A reader that has seen enough (`| head`) is no failure of ours, but no success either.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::FAILURE
        }
        Err(failure) => {
            let _ = writeln!(io::stderr(), "pillion-certs: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn make_ca(command: &Ca) -> Result<(), Failure> {
    make_directory(&command.out)?;
    let (cert, key) = (command.out.join("ca.crt"), command.out.join("ca.key"));
    if !command.force
        && let Some(there) = [&key, &cert].into_iter().find(|path| path.symlink_metadata().is_ok())
    {
        return Err(Failure::AuthorityExists(there.clone()));
    }
    let authority = issue::make_ca(&command.trust_domain, command.ttl)?;
    issue::write_together(&[
        NewFile { path: &key, bytes: authority.key_pem.as_bytes(), mode: 0o600 },
        NewFile { path: &cert, bytes: authority.cert_pem.as_bytes(), mode: 0o644 },
    ])?;
    let mut out = io::stdout();
    writeln!(out, "authority of {}: {}", command.trust_domain, cert.display())?;
    Ok(())
}

fn issue_svid(command: &Issue) -> Result<(), Failure> {
    let authority = read_authority(&command.ca)?;
    let svid = issue::issue(&authority, &command.id, command.ttl)?;
    make_directory(&command.out)?;
    let path = |name: &str| command.out.join(name);
    let (ca, bundle) = (path("ca.crt"), svid.bundle_pem());
    let ca_file = NewFile { path: &ca, bytes: authority.cert_pem.as_bytes(), mode: 0o644 };
    let (cert, key, both) = (path("tls.crt"), path("tls.key"), path("credentials.pem"));
    if command.bundle {
        let both = NewFile { path: &both, bytes: bundle.as_bytes(), mode: 0o600 };
        issue::write_together(&[ca_file, both])?;
    } else {
        issue::write_together(&[
            ca_file,
            NewFile { path: &key, bytes: svid.key_pem.as_bytes(), mode: 0o600 },
            NewFile { path: &cert, bytes: svid.chain_pem.as_bytes(), mode: 0o644 },
        ])?;
    }
    writeln!(io::stdout(), "{}: {}", command.id, command.out.display())?;
    Ok(())
}

fn revoke(command: &Revoke) -> Result<(), Failure> {
    let authority = read_authority(&command.ca)?;
    let mut serials = command.serial.clone();
    for file in &command.cert {
        serials.push(Serial::of_certificate(read_text(file)?.as_bytes(), &authority)?);
    }
    let previous = match command.out.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        _ => Some(read_text(&command.out)?),
    };
    let previous = previous.as_ref().map(|text| text.as_bytes());
    let reason = command.reason.map(RevocationReason::from);
    let list = revocation_list(&authority, previous, &serials, reason, command.next_update)?;
    issue::write_atomically(&command.out, list.as_bytes(), 0o644)?;
    writeln!(io::stdout(), "revocation list: {}", command.out.display())?;
    Ok(())
}

fn read_authority(directory: &Path) -> Result<CertificateAuthority, Failure> {
    Ok(CertificateAuthority {
        cert_pem: read_text(&directory.join("ca.crt"))?.to_string(),
        key_pem: read_text(&directory.join("ca.key"))?,
    })
}

#[derive(Serialize)]
struct FileReport {
    file: String,
    #[serde(flatten)]
    report: Report,
}

fn inspect_files(command: &Inspect) -> Result<bool, Failure> {
    let ca = command.ca.as_deref().map(read_text).transpose()?;
    let ca = ca.as_ref().map(|text| text.as_bytes());
    let crl = command.crl.as_deref().map(read_bytes).transpose()?;
    let mut reports = Vec::with_capacity(command.files.len());
    for file in &command.files {
        let content = read_bytes(file).map(Zeroizing::new)?;
        let report = inspect(&content, ca, crl.as_deref(), UnixTime::now());
        reports.push(FileReport { file: file.display().to_string(), report });
    }
    let mut out = io::stdout().lock();
    match command.output {
        Output::Json => {
            serde_json::to_writer_pretty(&mut out, &reports).map_err(io::Error::from)?;
            writeln!(out)?;
        }
        Output::Text => reports.iter().try_for_each(|report| write_text(&mut out, report))?,
    }
    Ok(reports.iter().all(|file| file.report.is_good()))
}

fn write_text(out: &mut impl Write, file: &FileReport) -> io::Result<()> {
    writeln!(out, "{}", file.file)?;
    for certificate in &file.report.certificates {
        writeln!(
            out,
            "  {}  {}\n    valid    {} to {} ({} days left)\n    key      {}\n    serial   {}\n    \
             subject  {}\n    issuer   {}",
            certificate.role,
            certificate.id.as_deref().unwrap_or("(no SPIFFE identity)"),
            certificate.not_before,
            certificate.not_after,
            certificate.days_left,
            certificate.key,
            certificate.serial,
            certificate.subject,
            certificate.issuer,
        )?;
        write_broken(out, "    ", &certificate.broken)?;
    }
    for list in &file.report.lists {
        writeln!(
            out,
            "  list of  {}\n    issued   {}\n    ends     {}\n    revokes  {}",
            list.issuer,
            list.this_update,
            list.next_update.as_deref().unwrap_or("(never: it can't be used)"),
            list.revoked.len(),
        )?;
        for entry in &list.revoked {
            let reason = entry.reason.as_deref().unwrap_or("no reason given");
            writeln!(out, "      {} at {}, {reason}", entry.serial, entry.at)?;
        }
        write_broken(out, "    ", &list.broken)?;
    }
    write_broken(out, "  ", &file.report.broken)?;
    if file.report.is_good() {
        writeln!(out, "  good: it breaks no rule")?;
    }
    Ok(())
}

fn write_broken(out: &mut impl Write, indent: &str, broken: &[Broken]) -> io::Result<()> {
    broken.iter().try_for_each(|b| writeln!(out, "{indent}BROKEN {}: {}", b.rule, b.message))
}

fn make_directory(path: &Path) -> Result<(), Failure> {
    fs::create_dir_all(path).map_err(|source| Failure::Directory { path: path.to_owned(), source })
}

fn read_bytes(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(|source| Failure::Read { path: path.to_owned(), source })
}

fn read_text(path: &Path) -> Result<Zeroizing<String>, Failure> {
    fs::read_to_string(path)
        .map(Zeroizing::new)
        .map_err(|source| Failure::Read { path: path.to_owned(), source })
}

/// `90s`, `15m`, `24h`, `365d`; a bare number isn't taken, for its unit would be a guess.
fn duration(text: &str) -> Result<Duration, String> {
    let cure = || format!("{text:?} is no duration; write a number and s, m, h or d, as in 24h");
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 86_400,
        _ => return Err(cure()),
    };
    let number = text.get(..text.len() - 1).and_then(|digits| digits.parse::<u64>().ok());
    let seconds = number.and_then(|number| number.checked_mul(unit)).filter(|s| *s > 0);
    seconds.map(Duration::from_secs).ok_or_else(cure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_carry_their_unit() {
        for (text, seconds) in [("90s", 90), ("15m", 900), ("24h", 86_400), ("365d", 31_536_000)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)));
        }
        for text in ["", "s", "24", "0h", "-1h", "1.5h", "1w", "99999999999999999999d", "1 h", "é"]
        {
            assert!(duration(text).is_err(), "{text:?}");
        }
        assert!(duration("18446744073709551615d").is_err(), "an overflow");
    }
}
