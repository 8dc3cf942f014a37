//! Who is revoked, and by what kind of list.

use rcgen::{CertificateRevocationListParams, KeyIdMethod, KeyPair, KeyUsagePurpose, SerialNumber};
use time::{Duration, OffsetDateTime};

use super::Verdict::{Good, Refused};
use super::{Authorities, DAY, Entry, authority, authority_with};
use crate::issue::{self, CertificateAuthority, IssueError};
use crate::revoke::{Serial, revocation_list};

/// The entries, and the lists that they are judged by.
pub(super) fn entries(made: &Authorities) -> Result<(Vec<Entry>, String), IssueError> {
    let between = |name: &str| authority(name, Some(&made.root), |_| {});
    let (listed, cast_out) = (between("corpus listed")?, between("corpus cast out")?);
    let (stale, forged) = (between("corpus stale")?, between("corpus forged")?);
    let key = KeyPair::generate()?;
    let mute = authority_with("corpus mute", &key, Some(&made.root), |params| {
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    })?;
    let mute_lists = authority_with("corpus mute", &key, Some(&made.root), |_| {})?;
    let forger = authority("corpus forged", None, |_| {})?;

    let mut entries = Vec::new();
    let mut lists = String::new();
    let below = |name, verdict, ca: &CertificateAuthority| {
        Entry::new(name, verdict, &made.good()?.sign(ca)?)?.through(&[ca])
    };
    let revoked = made.good()?.sign(&listed)?;
    let serial = Serial::of_certificate(revoked.chain_pem.as_bytes(), &listed)?;
    lists += &revocation_list(&listed, None, &[serial], None, DAY)?;
    entries.push(Entry::new("revoked", Refused("revoked"), &revoked)?.through(&[&listed])?);
    entries.push(below("beside one that is revoked", Good, &listed)?);

    let serial = Serial::of_certificate(cast_out.cert_pem.as_bytes(), &made.root)?;
    lists += &revocation_list(&made.root, None, &[serial], None, DAY)?;
    entries.push(below("below an authority that is revoked", Refused("revoked"), &cast_out)?);

    lists += &ended(&stale)?;
    entries.push(below("its issuer's list has ended", Refused("crl_expired"), &stale)?);
    lists += &revocation_list(&forger, None, &[], None, DAY)?;
    entries.push(below("its issuer's list is by another key", Refused("crl_invalid"), &forged)?);
    lists += &revocation_list(&mute_lists, None, &[], None, DAY)?;
    entries.push(below("its issuer may not sign lists", Refused("crl_invalid"), &mute)?);
    Ok((entries, lists))
}

/// An empty list that ended an hour ago.
fn ended(ca: &CertificateAuthority) -> Result<String, IssueError> {
    let now = OffsetDateTime::now_utc();
    let list = CertificateRevocationListParams {
        this_update: now - Duration::hours(2),
        next_update: now - Duration::hours(1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    Ok(list.signed_by(&issue::issuer(ca)?)?.pem()?)
}
