//! An identity as the SPIFFE Workload API hands it out, in memory.

use std::collections::BTreeMap;

use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime,
};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use crate::files::{ContentHash, Hasher};
use crate::generation::{KeyExchange, TlsGeneration};
use crate::load::LoadError;
use crate::revocation::RevocationLists;
use crate::spiffe::TrustDomain;
use crate::verify::TrustBundles;

/// The parts of an X509SVIDResponse (SPIFFE Workload API §5.2.1) that make one identity.
#[derive(Default)]
pub struct Received {
    /// The SPIFFE ID that the answer says the certificate has.
    pub id: String,
    /// The certificate and its intermediates, DER, one behind the other, leaf first.
    pub svid: Vec<u8>,
    /// The private key, PKCS#8 in DER.
    pub key: Zeroizing<Vec<u8>>,
    /// The authorities of our own trust domain, DER, one behind the other.
    pub bundle: Vec<u8>,
    /// The authorities of others, by the SPIFFE ID of the trust domain.
    pub federated: Vec<(String, Vec<u8>)>,
    /// Revocation lists, DER.
    pub lists: Vec<Vec<u8>>,
}

impl Received {
    /// Builds a generation of it, by the same rules as from files: a federated bundle or revocation
    /// lists that can't be used stay as they were in `before`; a bundle that was not there is
    /// missing, and lists that were not there are an error. Where our own part can't be used and
    /// the lists are new, it is `before` with these. Each such fault comes back too.
    ///
    /// # Errors
    /// [`LoadError::WorkloadApi`] says which part can't be used;
    /// [`LoadError::TrustDomain`] isn't raised: an `expected` domain that the certificate is not
    /// of is one of those parts.
    pub fn generation(
        &self,
        expected: Option<&TrustDomain>,
        key_exchange: KeyExchange,
        before: Option<&TlsGeneration>,
    ) -> Result<(TlsGeneration, Vec<LoadError>), LoadError> {
        let (generation, faults) = self
            .build(expected, key_exchange, before)
            .or_else(|fault| match self.with_newer_lists(before) {
                Ok(Some(generation)) => Ok((generation, vec![fault])),
                Ok(None) => Err(fault),
                Err(of_lists) => Err(format!("{fault}; and {of_lists}")),
            })
            .map_err(LoadError::WorkloadApi)?;
        Ok((generation, faults.into_iter().map(LoadError::WorkloadApi).collect()))
    }

    /// The last generation with the lists of this answer, where these are new and good and the
    /// rest can't be used. That such an answer has none is not taken for a word on that.
    fn with_newer_lists(
        &self,
        before: Option<&TlsGeneration>,
    ) -> Result<Option<TlsGeneration>, String> {
        let Some(before) = before.filter(|_| !self.lists.is_empty()) else { return Ok(None) };
        Ok(before.with_newer_lists(self.revocation_lists()?))
    }

    fn build(
        &self,
        expected: Option<&TrustDomain>,
        key_exchange: KeyExchange,
        before: Option<&TlsGeneration>,
    ) -> Result<(TlsGeneration, Vec<String>), String> {
        let chain = certificates("the X.509-SVID", &self.svid)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(&**self.key));
        let own = chain.first().map(crate::leaf::check).transpose();
        let own = own.map_err(|refusal| format!("the X.509-SVID: {refusal}"))?;
        let own = own.ok_or("the X.509-SVID: no certificate")?.id;
        if own.as_str() != self.id {
            return Err(format!("the X.509-SVID is of {own}, and announced as {:?}", self.id));
        }
        if let Some(expected) = expected.filter(|domain| *domain != own.trust_domain()) {
            return Err(format!("the X.509-SVID is of {own}, but {expected} is configured"));
        }
        let known = before.map(|generation| generation.verifier().bundles());
        let mut faults = Vec::new();
        let bundles = self.bundles(own.trust_domain(), known, &mut faults)?;
        let bundles = match (self.revocation_lists(), known) {
            (Ok(lists), known) => bundles.with_lists_or_those_of(lists, known),
            (Err(fault), Some(known)) => {
                faults.push(fault);
                bundles.with_the_lists_of(known)
            }
            (Err(fault), None) => return Err(fault),
        };
        let generation = TlsGeneration::next(before, chain.clone(), &key, bundles, key_exchange)
            .map_err(|error| format!("the X.509-SVID: {error}"))?;
        if let Err(refusal) = generation.verifier().verify(&chain, UnixTime::now()) {
            let reason = refusal.to_string();
            tracing::warn!(%reason, "peers with our trust bundle would refuse our certificate");
        }
        Ok((generation, faults))
    }

    /// Ours, which must be good, and those of others, which are their own business.
    fn bundles(
        &self,
        own: &TrustDomain,
        before: Option<&TrustBundles>,
        faults: &mut Vec<String>,
    ) -> Result<TrustBundles, String> {
        let mut bundles = TrustBundles::new();
        let mut add = |domain: &TrustDomain, der: &[u8]| {
            let name = format!("the bundle of {domain}");
            bundles
                .add(domain.clone(), &certificates(&name, der)?)
                .map_err(|error| format!("{name}: {error}"))
        };
        add(own, &self.bundle)?;
        let mut broken = Vec::new();
        for (id, der) in &self.federated {
            let domain = TrustDomain::from_id(id)
                .map_err(|error| format!("a federated bundle of {id:?}: {error}"));
            if let Err(fault) = domain.as_ref().map_err(Clone::clone).and_then(|d| add(d, der)) {
                broken.extend(domain);
                faults.push(fault);
            }
        }
        for domain in &broken {
            bundles.keep(domain, before);
        }
        Ok(bundles)
    }

    fn revocation_lists(&self) -> Result<RevocationLists, String> {
        let lists: Vec<_> =
            self.lists.iter().map(|list| CertificateRevocationListDer::from(&**list)).collect();
        RevocationLists::from_ders(&lists).map_err(|error| format!("the revocation lists: {error}"))
    }

    /// For "is this what we had?": agents say the same again to whoever asks anew.
    #[must_use]
    pub fn content_hash(&self) -> ContentHash {
        let mut hasher = Hasher::new();
        for part in [self.id.as_bytes(), &self.svid, &self.key, &self.bundle] {
            hasher.part(part);
        }
        // Their order in the answer means nothing.
        let federated: BTreeMap<_, _> = self.federated.iter().map(|(id, der)| (id, der)).collect();
        for (id, der) in federated {
            hasher.part(id.as_bytes());
            hasher.part(der);
        }
        hasher.part(b"lists");
        self.lists.iter().for_each(|list| hasher.part(list));
        hasher.finish()
    }
}

/// The certificates in DER that stand one behind the other.
fn certificates(what: &str, mut der: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut found = Vec::new();
    while !der.is_empty() {
        let (rest, _) = X509Certificate::from_der(der)
            .map_err(|error| format!("{what}: certificate {}: {error}", found.len() + 1))?;
        let length = der.len().saturating_sub(rest.len());
        found.push(CertificateDer::from(der.get(..length).unwrap_or_default().to_vec()));
        der = rest;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issue::{self, CertificateAuthority};
    use rustls_pki_types::pem::PemObject;
    use std::time::Duration;

    const HOUR: Duration = Duration::from_secs(3600);

    fn ders(pem: &str) -> Vec<u8> {
        CertificateDer::pem_slice_iter(pem.as_bytes())
            .flat_map(|der| der.unwrap().to_vec())
            .collect()
    }

    fn authority(domain: &str) -> CertificateAuthority {
        issue::make_ca(&domain.parse().unwrap(), HOUR).unwrap()
    }

    fn received() -> Received {
        let ca = authority("own.example");
        let id = "spiffe://own.example/app";
        let svid = issue::issue(&ca, &id.parse().unwrap(), HOUR / 2).unwrap();
        let key = PrivatePkcs8KeyDer::from_pem_slice(svid.key_pem.as_bytes()).unwrap();
        Received {
            id: id.to_owned(),
            svid: ders(&svid.chain_pem),
            key: Zeroizing::new(key.secret_pkcs8_der().to_vec()),
            bundle: [ders(&ca.cert_pem), ders(&authority("own.example").cert_pem)].concat(),
            federated: vec![(
                "spiffe://partner.example".to_owned(),
                ders(&authority("partner.example").cert_pem),
            )],
            lists: Vec::new(),
        }
    }

    #[test]
    fn all_of_an_answer_is_used() {
        let (generation, faults) = received().generation(None, KeyExchange::Auto, None).unwrap();
        assert_eq!(faults, []);
        assert_eq!(generation.own_id().as_str(), "spiffe://own.example/app");
        let mut domains: Vec<_> =
            generation.verifier().bundles().domains().map(|d| d.as_str().to_owned()).collect();
        domains.sort();
        assert_eq!(domains, ["own.example", "partner.example"]);
        assert!(
            generation
                .verifier()
                .verify(&certificates("", &received().svid).unwrap(), UnixTime::now())
                .is_err()
        );
    }

    #[test]
    fn each_part_that_cannot_be_used_is_named() {
        let expected = "other.example".parse().unwrap();
        type Spoil = fn(&mut Received);
        let spoilt: [(Option<&TrustDomain>, Spoil, &str); 8] = [
            (None, |r| r.svid.clear(), "no certificate"),
            (None, |r| r.svid.truncate(200), "certificate 1"),
            (None, |r| r.svid.push(0x30), "certificate 2"),
            (None, |r| r.id = "spiffe://own.example/other".to_owned(), "announced as"),
            (Some(&expected), |_| (), "is configured"),
            (None, |r| r.key = Zeroizing::new(vec![1, 2, 3]), "the private key can't be used"),
            (None, |r| r.bundle.clear(), "the bundle of own.example: it holds no certificate"),
            (None, |r| r.lists.push(vec![0x30, 0]), "the revocation lists: list 1"),
        ];
        for (expected, spoil, part) in spoilt {
            let mut received = received();
            spoil(&mut received);
            let error = received.generation(expected, KeyExchange::Auto, None).unwrap_err();
            assert_eq!(error.label(), "workload_api");
            assert!(error.to_string().contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn a_federated_bundle_that_cannot_be_used_takes_only_its_own_domain_away() {
        type Spoil = fn(&mut Received);
        let spoilt: [Spoil; 4] = [
            |r| r.federated[0].1.clear(),
            |r| r.federated[0].1.truncate(100),
            |r| r.federated[0].0 = "partner.example".to_owned(),
            |r| r.federated[0].0 = "spiffe://own.example".to_owned(),
        ];
        for spoil in spoilt {
            let mut received = received();
            spoil(&mut received);
            let (generation, faults) = received.generation(None, KeyExchange::Auto, None).unwrap();
            assert_eq!(faults.iter().map(LoadError::label).collect::<Vec<_>>(), ["workload_api"]);
            let domains: Vec<_> = generation.verifier().bundles().domains().cloned().collect();
            assert_eq!(domains, ["own.example".parse().unwrap()]);
            let own = certificates("", &received.svid).unwrap();
            assert!(generation.verifier().verify(&own, UnixTime::now()).is_ok(), "ours is whole");
        }
    }

    #[test]
    fn what_was_good_before_stays_beside_what_is_new() {
        let next = |before: &TlsGeneration, spoil: fn(&mut Received)| {
            let mut received = received();
            spoil(&mut received);
            received.generation(None, KeyExchange::Auto, Some(before)).unwrap()
        };
        let domains =
            |generation: &TlsGeneration| generation.verifier().bundles().domains().count();
        let ca = authority("own.example");
        let list = crate::revoke::revocation_list(&ca, None, &[], None, HOUR).unwrap();
        let mut first = received();
        first.lists =
            vec![CertificateRevocationListDer::from_pem_slice(list.as_bytes()).unwrap().to_vec()];
        let (first, _) = first.generation(None, KeyExchange::Auto, None).unwrap();

        let (second, faults) = next(&first, |r| {
            r.federated[0].1.truncate(100);
            r.lists = vec![vec![0x30, 0]];
        });
        assert_eq!((faults.len(), domains(&second), second.revocation_lists().len()), (2, 2, 1));
        assert_ne!(second.serial(), first.serial(), "our own part is new");
        let (third, faults) = next(&second, |r| r.federated.clear());
        assert_eq!((faults.len(), domains(&third), third.revocation_lists().len()), (0, 1, 0));
        let (fourth, faults) = next(&third, |r| r.federated[0].1.clear());
        assert_eq!((faults.len(), domains(&fourth)), (1, 1), "there was none to stay");
    }

    #[test]
    fn a_fault_of_ours_holds_up_no_new_list() {
        let ca = authority("own.example");
        let list = |lifetime| {
            let pem = crate::revoke::revocation_list(&ca, None, &[], None, lifetime).unwrap();
            CertificateRevocationListDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
        };
        let (old, new) = (list(HOUR), list(HOUR * 2));
        let with = |spoil: fn(&mut Received), lists: &[&[u8]]| Received {
            lists: lists.iter().map(|list| list.to_vec()).collect(),
            ..{
                let mut received = received();
                spoil(&mut received);
                received
            }
        };
        let ends = |generation: &TlsGeneration| {
            generation.revocation_lists().lifetimes().map(|life| life.until).collect::<Vec<_>>()
        };
        type Spoil = fn(&mut Received);
        let spoilt: [Spoil; 3] = [|r| r.svid.clear(), |r| r.key.clear(), |r| r.bundle.clear()];
        for spoil in spoilt {
            let (before, _) =
                with(|_| (), &[&old]).generation(None, KeyExchange::Auto, None).unwrap();
            let next = |lists: &[&[u8]], before| {
                with(spoil, lists).generation(None, KeyExchange::Auto, before)
            };
            let (after, faults) = next(&[&new], Some(&before)).unwrap();
            assert_eq!((after.serial(), faults.len()), (before.serial(), 1));
            assert_ne!(ends(&after), ends(&before));
            for (lists, before) in [
                // The same lists, broken ones, none, and no generation that could have them.
                (&[&*old][..], Some(&before)),
                (&[&new, &[0x30, 0]], Some(&before)),
                (&[], Some(&before)),
                (&[&new], None),
            ] {
                let error = next(lists, before).unwrap_err().to_string();
                let is_told = error.contains("the revocation lists: list 2");
                assert_eq!(is_told, lists.len() == 2, "{error}");
            }
        }
    }

    #[test]
    fn the_same_answer_has_the_same_hash_and_every_part_counts() {
        let mut one = received();
        one.federated.push(("spiffe://b.example".to_owned(), vec![1]));
        let hash = one.content_hash();
        one.federated.reverse();
        assert_eq!(one.content_hash(), hash);
        type Change = fn(&mut Received);
        let changes: [Change; 6] = [
            |r| r.id.push('x'),
            |r| r.svid.push(0),
            |r| r.key.push(0),
            |r| r.bundle.push(0),
            |r| r.federated[0].1.push(0),
            |r| r.lists.push(vec![0]),
        ];
        let mut seen = std::collections::HashSet::from([hash]);
        for change in changes {
            change(&mut one);
            assert!(seen.insert(one.content_hash()));
        }
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let mut one = received();
        one.key = received().key;
        let error = one.generation(None, KeyExchange::Auto, None).unwrap_err().to_string();
        assert!(error.contains("does not belong to the certificate"), "{error}");
    }
}
