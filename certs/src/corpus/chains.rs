//! Chains with authorities between the leaf and the bundle.

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};

use super::der::{SEQUENCE, element};
use super::{Authorities, Entry, Verdict, authority};
use crate::issue::{CertificateAuthority, IssueError};

use Verdict::{Good, Refused};

const CONSTRAINT: Verdict = Refused("issuer_constraint");

type Change<'a> = Box<dyn FnOnce(&mut CertificateParams) + 'a>;

/// The entries, and the further authorities that the bundle must have for them.
pub(super) fn entries(made: &Authorities) -> Result<(Vec<Entry>, String), IssueError> {
    let mut entries = one_between(made)?;
    entries.extend(shapes(made)?);
    let (more, bundle) = roots(made)?;
    entries.extend(more);
    Ok((entries, bundle))
}

fn leaf_below(
    made: &Authorities,
    name: &'static str,
    verdict: Verdict,
    chain: &[&CertificateAuthority],
) -> Result<Entry, IssueError> {
    let issuer = chain.first().copied().unwrap_or(&made.plain);
    Entry::new(name, verdict, &made.good()?.sign(issuer)?)?.through(chain)
}

type Listed<'a> = (&'static str, Verdict, Change<'a>);

/// One authority between, with one thing about it.
fn one_between(made: &Authorities) -> Result<Vec<Entry>, IssueError> {
    let mut list = names(made);
    list.extend(usages());
    list.extend(dates());
    list.extend(constraints(made));
    list.into_iter()
        .map(|(name, verdict, change)| {
            let between = authority(name, Some(&made.root), change)?;
            leaf_below(made, name, verdict, &[&between])
        })
        .collect()
}

fn names(made: &Authorities) -> Vec<Listed<'static>> {
    let named = |uris: Vec<String>| -> Change<'static> {
        let names = uris.into_iter().filter_map(|uri| uri.try_into().ok().map(SanType::URI));
        Box::new(move |params| params.subject_alt_names = names.collect())
    };
    let domain = made.id("");
    vec![
        ("an authority between that names its trust domain", Good, named(vec![domain.clone()])),
        ("an authority between that names a workload", CONSTRAINT, named(vec![made.id("/ca")])),
        (
            "an authority between with two URI SANs",
            CONSTRAINT,
            named(vec![domain, "spiffe://b.example".to_owned()]),
        ),
    ]
}

fn usages() -> Vec<Listed<'static>> {
    use ExtendedKeyUsagePurpose as Eku;
    fn purposes(purposes: &'static [Eku]) -> Change<'static> {
        Box::new(|params| params.extended_key_usages = purposes.to_vec())
    }
    fn usages(usages: &'static [KeyUsagePurpose]) -> Change<'static> {
        Box::new(|params| params.key_usages = usages.to_vec())
    }
    fn is_ca(is_ca: IsCa) -> Change<'static> {
        Box::new(move |params| params.is_ca = is_ca)
    }
    let only_leaves = IsCa::Ca(BasicConstraints::Constrained(0));
    vec![
        ("one authority between", Good, Box::new(|_| {})),
        (
            "an authority between with both purposes",
            Good,
            purposes(&[Eku::ServerAuth, Eku::ClientAuth]),
        ),
        ("a path length of 0 above a leaf", Good, is_ca(only_leaves)),
        (
            "an authority between without keyCertSign",
            CONSTRAINT,
            usages(&[KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign]),
        ),
        ("an authority between without key usage", CONSTRAINT, usages(&[])),
        ("an authority between that is no CA", CONSTRAINT, is_ca(IsCa::ExplicitNoCa)),
        ("an authority between without basic constraints", CONSTRAINT, is_ca(IsCa::NoCa)),
        ("an authority between for servers alone", CONSTRAINT, purposes(&[Eku::ServerAuth])),
        ("an authority between for e-mail", CONSTRAINT, purposes(&[Eku::EmailProtection])),
    ]
}

fn dates() -> Vec<Listed<'static>> {
    let valid = |from: i64, until: i64| -> Change<'static> {
        let now = OffsetDateTime::now_utc();
        Box::new(move |params| {
            params.not_before = now + Duration::hours(from);
            params.not_after = now + Duration::hours(until);
        })
    };
    vec![
        ("an authority between that has expired", Refused("expired"), valid(-2, -1)),
        ("an authority between that is not valid yet", Refused("not_yet_valid"), valid(1, 2)),
    ]
}

fn constraints(made: &Authorities) -> Vec<Listed<'_>> {
    let with = |extension: CustomExtension| -> Change<'_> {
        Box::new(move |params| params.custom_extensions.push(extension))
    };
    let own = made.domain.as_str();
    let mut unknown = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999, 1], vec![5, 0]);
    unknown.set_criticality(true);
    vec![
        // webpki weighs no URI constraint, and refuses what is under one.
        (
            "a URI name constraint that permits our domain",
            CONSTRAINT,
            with(uri_constraint(true, own)),
        ),
        (
            "a URI name constraint that permits another domain",
            CONSTRAINT,
            with(uri_constraint(true, "b.example")),
        ),
        (
            "a URI name constraint that excludes our domain",
            CONSTRAINT,
            with(uri_constraint(false, own)),
        ),
        (
            "an unknown critical extension of the authority between",
            Refused("malformed"),
            with(unknown),
        ),
    ]
}

/// NameConstraints with one subtree of URIs (RFC 5280 §4.2.1.10).
fn uri_constraint(permitted: bool, host: &str) -> CustomExtension {
    let subtree = element(SEQUENCE, &element(0x86, host.as_bytes()));
    let subtrees = element(if permitted { 0xa0 } else { 0xa1 }, &subtree);
    let mut extension =
        CustomExtension::from_oid_content(&[2, 5, 29, 30], element(SEQUENCE, &subtrees));
    extension.set_criticality(true);
    extension
}

/// How many certificates, and in which order.
fn shapes(made: &Authorities) -> Result<Vec<Entry>, IssueError> {
    let upper = authority("corpus upper", Some(&made.root), |_| {})?;
    let lower = authority("corpus lower", Some(&upper), |_| {})?;
    let short = authority("corpus short", Some(&made.root), |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    })?;
    let below_short = authority("corpus below short", Some(&short), |_| {})?;
    let below_plain = authority("corpus below plain", Some(&made.plain), |_| {})?;
    let unrelated = authority("corpus unrelated", None, |_| {})?;
    let fat = authority("corpus fat", Some(&made.root), |params| {
        let content = vec![0; 16 * 1024];
        let oid = &[1, 3, 6, 1, 4, 1, 99_999, 2];
        params.custom_extensions.push(CustomExtension::from_oid_content(oid, content));
    })?;
    let below =
        |name, verdict, chain: &[&CertificateAuthority]| leaf_below(made, name, verdict, chain);
    let mut entries = vec![
        below("two authorities between", Good, &[&lower, &upper])?,
        below("two authorities between and the root", Good, &[&lower, &upper, &made.root])?,
        below("an authority that has no part in it", Good, &[&lower, &upper, &unrelated])?,
        below("the same authority twice", Good, &[&lower, &upper, &upper])?,
        below(
            "beyond the path length of an authority between",
            CONSTRAINT,
            &[&below_short, &short],
        )?,
        below("beyond the path length of the bundle's authority", CONSTRAINT, &[&below_plain])?,
        below(
            "five certificates",
            Refused("chain_too_long"),
            &[&lower, &upper, &made.root, &unrelated],
        )?,
        below("more than 16 KiB", Refused("chain_too_long"), &[&fat])?,
        leaf_below(made, "the upper authority is missing", Refused("unknown_issuer"), &[&lower])?,
    ];
    let mut turned = below("authorities in the wrong order", Good, &[&lower, &upper])?;
    turned.chain.swap(1, 2);
    entries.push(turned);
    let mut alone =
        below("the authority between is missing", Refused("unknown_issuer"), &[&lower])?;
    alone.chain.truncate(1);
    entries.push(alone);
    let mut broken =
        below("an authority between that is cut off", Refused("malformed"), &[&lower, &upper])?;
    if let Some(between) = broken.chain.get_mut(1) {
        let half = between.get(..between.len() / 2).unwrap_or_default().to_vec();
        *between = CertificateDer::from(half);
    }
    entries.push(broken.only_here());
    // The leaf comes first (RFC 8446 §4.4.2); what comes first is taken for it.
    let mut first =
        below("an authority where the leaf should be", Refused("no_uri_san"), &[&lower, &upper])?;
    first.chain.swap(0, 1);
    entries.push(first.only_here());
    Ok(entries)
}

/// What is wrong with an authority of the bundle itself.
fn roots(made: &Authorities) -> Result<(Vec<Entry>, String), IssueError> {
    let now = OffsetDateTime::now_utc();
    let expired = authority("corpus expired root", None, |params| {
        params.not_before = now - Duration::hours(2);
        params.not_after = now - Duration::hours(1);
    })?;
    let early = authority("corpus early root", None, |params| {
        params.not_before = now + Duration::hours(1);
        params.not_after = now + Duration::hours(2);
    })?;
    let excluding = authority("corpus excluding root", None, |params| {
        params.custom_extensions.push(uri_constraint(false, made.domain.as_str()));
    })?;
    let entries = [
        ("issued by an expired authority", "expired", &expired),
        ("issued by an authority that is not valid yet", "not_yet_valid", &early),
        ("issued by an authority that excludes our domain", "issuer_constraint", &excluding),
    ];
    let entries = entries
        .into_iter()
        .map(|(name, label, ca)| Entry::new(name, Refused(label), &made.good()?.sign(ca)?))
        .collect::<Result<_, _>>()?;
    Ok((entries, format!("{}{}{}", expired.cert_pem, early.cert_pem, excluding.cert_pem)))
}
