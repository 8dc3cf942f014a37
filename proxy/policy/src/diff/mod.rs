//! What becomes of which connections when one policy replaces another.
//!
//! Not a comparison of texts: the space of connections is cut along every boundary that either
//! file draws, into classes within which each file treats all connections alike. One connection of
//! each class is judged by both. Equal changes are put together into as few lines as they fit in.

mod identities;
mod inbound;
mod names;
mod outbound;
mod settings;
mod space;
mod text;

use std::sync::Arc;

use ipnet::IpNet;

use super::Policy;
use super::index::Work;

pub use space::Ports;

/// The most classes that are judged, each by both policies: about a second's work. Beyond, there
/// is no answer, and never a part of one.
pub const MOST_CLASSES: usize = 2_000_000;

/// What a change does to what is let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// More is let through, or with less protection.
    Loosens,
    /// Less is let through, or with more protection.
    Tightens,
    /// Neither: what decides, what is reported, or how it is carried.
    Changes,
}

impl Effect {
    /// `loosens`, `tightens` or `changes`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Loosens => "loosens",
            Self::Tightens => "tightens",
            Self::Changes => "changes",
        }
    }

    fn of<T: Ord>(was: T, now: T) -> Self {
        match was.cmp(&now) {
            std::cmp::Ordering::Less => Self::Loosens,
            std::cmp::Ordering::Greater => Self::Tightens,
            std::cmp::Ordering::Equal => Self::Changes,
        }
    }
}

/// What one of the two policies does with the connections of a change.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Outcome {
    /// `allow`, `deny`, `mtls` or `passthrough`.
    pub verdict: &'static str,
    /// What decides: a rule's name, "default", "audit"; "mtls" for plaintext on a strict port,
    /// "trustDomains" for a peer of a domain that isn't accepted, "probes" for a health probe.
    pub rule: Arc<str>,
    /// What is only reported: whether it would be let through, and what would decide.
    pub reported: Option<(bool, Arc<str>)>,
}

/// What of the connections changes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum What {
    /// The verdict, or with the same verdict what decides or is reported.
    Verdict,
    /// The servers with these identities may answer, which might not.
    ServersGained(Vec<Identities>),
    /// The servers with these identities may no longer answer.
    ServersLost(Vec<Identities>),
    /// `tunnelReuse` of the destination.
    TunnelReuse,
}

/// Identities that match each of some patterns and none of others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identities {
    /// Patterns as in the file, short forms written out.
    pub matching: Vec<Arc<str>>,
    /// What is left out of them.
    pub but_not: Vec<Arc<str>>,
}

/// Whom a change is about: for inbound the peer, for outbound the name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Who {
    /// Inbound: a peer that speaks plaintext.
    Plaintext,
    /// Inbound: a plaintext health probe of a path that either file lists.
    Probe(Box<str>),
    /// Inbound: a peer that proves one of these identities.
    Identities(Identities),
    /// Inbound: a peer that proves an identity of a trust domain that neither file accepts.
    Stranger,
    /// Outbound: an address that none of the files' names has.
    NoName,
    /// Outbound: an address of this name, and of no other name of the files.
    Name(Arc<str>),
    /// Outbound: an address of one of the first names and of one of the second. There is a line
    /// only for what neither name alone has.
    Names(Vec<Arc<str>>, Vec<Arc<str>>),
}

/// Connections that change in the same way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// What the change does.
    pub effect: Effect,
    /// Whether these are connections to this pod.
    pub inbound: bool,
    /// The ports.
    pub ports: Ports,
    /// The sources; outbound, the destinations.
    pub addresses: Vec<IpNet>,
    /// The peers; outbound, the names.
    pub who: Vec<Who>,
    /// Whether `who` is every peer, or every name and none.
    pub everyone: bool,
    /// What changes.
    pub what: What,
    /// By the old policy.
    pub was: Outcome,
    /// By the new policy.
    pub now: Outcome,
    /// Of two names: whether a line of one of them alone has this effect, too.
    pub told: bool,
}

impl Change {
    /// Whether the connections fare as before, by another rule or with another report.
    #[must_use]
    pub fn is_by_name_only(&self) -> bool {
        self.effect == Effect::Changes && self.what == What::Verdict
    }

    /// Whether a summary may leave it out: [by name only](Self::is_by_name_only), or
    /// [told](Self::told) of one name already.
    #[must_use]
    pub fn is_detail(&self) -> bool {
        self.told || self.is_by_name_only()
    }
}

/// A change of what the file says once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Setting {
    /// What the change does.
    pub effect: Effect,
    /// The key, as in docs/policy.md.
    pub key: &'static str,
    /// The ports that it is about, if it is about ports.
    pub ports: Option<Ports>,
    /// The old value.
    pub was: String,
    /// The new value.
    pub now: String,
    /// What it means for connections.
    pub meaning: String,
}

/// All that changes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Diff {
    /// What the files say once.
    pub settings: Vec<Setting>,
    /// By effect, what loosens first, inbound before outbound.
    pub changes: Vec<Change>,
}

/// The two files together draw more boundaries than are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge {
    /// The limit that was met.
    pub limit: usize,
}

/// Compares two policies, judging at most `limit` classes of connections.
///
/// A peer that proves an identity is judged on a port with `mtls: disable` as the proxy does, which
/// sees no identity there. An address that has several of the files' names is judged with each of
/// them alone and with each two of them; a change of two is there where neither alone has it. With
/// more names than two its verdict, and who may answer, changes only as one of those tells.
///
/// # Errors
/// [`TooLarge`], when there are more classes.
pub fn diff(old: &Policy, new: &Policy, limit: usize) -> Result<Diff, TooLarge> {
    let work = Work::new(limit);
    let compare = || {
        let mut changes = inbound::changes(old, new, &work)?;
        changes.extend(outbound::changes(old, new, &work)?);
        changes.sort_by(|a, b| {
            (a.effect, b.inbound).cmp(&(b.effect, a.inbound)).then_with(|| a.cmp(b))
        });
        Some(Diff { settings: settings::changes(old, new), changes })
    };
    compare().ok_or(TooLarge { limit })
}
