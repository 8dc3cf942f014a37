//! The model, compiled into what verdicts are asked of.

use std::collections::HashSet;
use std::sync::Arc;

use aws_lc_rs::digest;
use pillion_certs::spiffe::TrustDomain;

use super::address::AddressSet;
use super::identity::IdentitySet;
use super::index::{Entry, Filed, RuleIndex};
use super::model::{self, File};
use super::{AUDIT_RULE, Action, AppAddress, DEFAULT_RULE, Enforcement, Mode, OutboundAction};

/// A compiled policy: immutable, shared by an `Arc`, replaced as a whole.
#[derive(Debug)]
pub struct Policy {
    pub(super) name: String,
    pub(super) hash: String,
    pub(super) enforcement: Enforcement,
    pub(super) trust_domains: Box<[TrustDomain]>,
    pub(super) inbound: Inbound,
    pub(super) outbound: Outbound,
    pub(super) default_name: Arc<str>,
    pub(super) audit_name: Arc<str>,
}

#[derive(Debug)]
pub(super) struct Inbound {
    pub(super) mtls: Mode,
    pub(super) ports: Box<[(u16, Mode)]>,
    pub(super) app_address: AppAddress,
    pub(super) probes: Box<[(u16, Box<str>)]>,
    pub(super) default: Action,
    pub(super) rules: Box<[Rule]>,
    pub(super) deny: RuleIndex,
    pub(super) allow: RuleIndex,
    pub(super) audit_deny: RuleIndex,
    pub(super) audit_allow: RuleIndex,
}

#[derive(Debug)]
pub(super) struct Outbound {
    pub(super) default: Action,
    pub(super) destinations: Box<[Arc<Destination>]>,
    /// The strictest first.
    pub(super) classes: [OutboundClass; 3],
    pub(super) hosts: Box<[Arc<str>]>,
}

/// The destinations of one action.
#[derive(Debug)]
pub(super) struct OutboundClass {
    pub(super) by_address: RuleIndex,
    /// Those with `hosts`, in the file's order.
    pub(super) by_host: Box<[u32]>,
}

impl Inbound {
    pub(super) fn class(&self, action: Action, mode: Enforcement) -> &RuleIndex {
        match (action, mode) {
            (Action::Deny, Enforcement::Enforce) => &self.deny,
            (Action::Allow, Enforcement::Enforce) => &self.allow,
            (Action::Deny, Enforcement::Audit) => &self.audit_deny,
            (Action::Allow, Enforcement::Audit) => &self.audit_allow,
        }
    }
}

impl Outbound {
    pub(super) fn class(&self, action: OutboundAction) -> &OutboundClass {
        let [deny, mtls, passthrough] = &self.classes;
        match action {
            OutboundAction::Deny => deny,
            OutboundAction::Mtls => mtls,
            OutboundAction::Passthrough => passthrough,
        }
    }
}

/// An inbound rule, as admin output shows it.
#[derive(Debug)]
pub struct Rule {
    pub(super) name: Arc<str>,
    pub(super) action: Action,
    pub(super) mode: Enforcement,
    pub(super) ports: Option<Arc<[u16]>>,
    pub(super) line: u32,
}

impl Rule {
    /// Its unique name, a DNS label.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What it does.
    #[must_use]
    pub fn action(&self) -> Action {
        self.action
    }

    /// Whether it acts or only reports.
    #[must_use]
    pub fn enforcement(&self) -> Enforcement {
        self.mode
    }

    /// Its ports, sorted; `None` for all.
    #[must_use]
    pub fn ports(&self) -> Option<&[u16]> {
        self.ports.as_deref()
    }

    /// The line of the file that names it, from 1.
    #[must_use]
    pub fn line(&self) -> u32 {
        self.line
    }
}

/// An outbound destination.
#[derive(Debug)]
pub struct Destination {
    pub(super) name: Arc<str>,
    pub(super) action: OutboundAction,
    pub(super) ports: Option<Arc<[u16]>>,
    pub(super) hosts: Box<[Arc<str>]>,
    pub(super) server_identities: IdentitySet,
    pub(super) tunnel_reuse: bool,
    pub(super) line: u32,
}

impl Destination {
    /// Its unique name, a DNS label.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What it does.
    #[must_use]
    pub fn action(&self) -> OutboundAction {
        self.action
    }

    /// Its ports, sorted; `None` for all.
    #[must_use]
    pub fn ports(&self) -> Option<&[u16]> {
        self.ports.as_deref()
    }

    /// The names that it is reached by, in lower case.
    #[must_use]
    pub fn hosts(&self) -> &[Arc<str>] {
        &self.hosts
    }

    /// Who may answer. Empty, and so nobody, unless the action is `mtls`.
    #[must_use]
    pub fn server_identities(&self) -> &IdentitySet {
        &self.server_identities
    }

    /// Whether a tunnel to it may carry one application connection after another.
    #[must_use]
    pub fn tunnel_reuse(&self) -> bool {
        self.tunnel_reuse
    }

    /// The line of the file that names it, from 1.
    #[must_use]
    pub fn line(&self) -> u32 {
        self.line
    }
}

/// Compiles what could be read. A required value that is missing, whose error is noted by then,
/// becomes the strictest.
pub(super) fn compile(file: &File, text: &str, own: Option<&TrustDomain>) -> Policy {
    let domains = file.trust_domains.clone().unwrap_or_else(|| own.cloned().into_iter().collect());
    let sum = digest::digest(&digest::SHA256, text.as_bytes());
    Policy {
        name: file.name.clone(),
        hash: sum.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect(),
        enforcement: file.enforcement,
        trust_domains: domains.into_boxed_slice(),
        inbound: inbound(&file.inbound),
        outbound: outbound(&file.outbound),
        default_name: Arc::from(DEFAULT_RULE),
        audit_name: Arc::from(AUDIT_RULE),
    }
}

fn inbound(model: &model::Inbound) -> Inbound {
    let class = |action, mode| {
        let rules = number(&model.rules).filter(|(_, r)| r.action == action && r.mode == mode);
        let filed = rules.flat_map(|(number, rule)| {
            rule.from.iter().map(move |from| Filed {
                rule: number,
                ports: rule.ports.as_ref(),
                entry: Entry {
                    addresses: from.blocks.as_deref().map(AddressSet::new),
                    identities: from.identities.as_deref().map(IdentitySet::new),
                },
                blocks: from.blocks.as_deref().unwrap_or_default(),
            })
        });
        RuleIndex::new(filed.collect())
    };
    let rules = model.rules.iter().map(|rule| Rule {
        name: rule.name.clone(),
        action: rule.action,
        mode: rule.mode,
        ports: rule.ports.clone(),
        line: rule.pos.line,
    });
    Inbound {
        mtls: model.mtls.as_ref().map_or(Mode::Strict, |mode| mode.value),
        ports: model.ports.iter().map(|(port, mode)| (*port, mode.value)).collect(),
        app_address: model.app_address,
        probes: model.probes.clone().into_boxed_slice(),
        default: model.default.unwrap_or(Action::Deny),
        rules: rules.collect(),
        deny: class(Action::Deny, Enforcement::Enforce),
        allow: class(Action::Allow, Enforcement::Enforce),
        audit_deny: class(Action::Deny, Enforcement::Audit),
        audit_allow: class(Action::Allow, Enforcement::Audit),
    }
}

fn outbound(model: &model::Outbound) -> Outbound {
    let class = |action| {
        let of = || number(&model.destinations).filter(move |(_, d)| d.action == action);
        let filed = of().filter(|(_, d)| !d.blocks.is_empty()).map(|(number, d)| Filed {
            rule: number,
            ports: d.ports.as_ref(),
            entry: Entry { addresses: Some(AddressSet::new(&d.blocks)), identities: None },
            blocks: &d.blocks,
        });
        let by_host = of().filter(|(_, d)| !d.hosts.is_empty()).map(|(number, _)| number);
        OutboundClass { by_address: RuleIndex::new(filed.collect()), by_host: by_host.collect() }
    };
    let mut seen = HashSet::new();
    let hosts = model.destinations.iter().flat_map(|d| &d.hosts).filter(|host| seen.insert(*host));
    let destinations = model.destinations.iter().map(|d| {
        Arc::new(Destination {
            name: d.name.clone(),
            action: d.action,
            ports: d.ports.clone(),
            hosts: d.hosts.clone().into_boxed_slice(),
            server_identities: IdentitySet::new(&d.server_identities),
            tunnel_reuse: d.tunnel_reuse,
            line: d.pos.line,
        })
    });
    Outbound {
        default: model.default.unwrap_or(Action::Deny),
        destinations: destinations.collect(),
        classes: [OutboundAction::Deny, OutboundAction::Mtls, OutboundAction::Passthrough]
            .map(class),
        hosts: hosts.cloned().collect(),
    }
}

fn number<T>(items: &[T]) -> impl Iterator<Item = (u32, &T)> {
    (0..).zip(items)
}
