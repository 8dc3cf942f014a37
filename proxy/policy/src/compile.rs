//! The model, compiled into what verdicts are asked of.

use std::collections::HashSet;
use std::sync::Arc;

use aws_lc_rs::digest;
use pillion_certs::spiffe::TrustDomain;

use super::address::AddressSet;
use super::identity::IdentitySet;
use super::index::{Entry, RuleIndex, Source};
use super::model::{self, File};
use super::{
    AUDIT_RULE, Action, AppAddress, DEFAULT_RULE, Enforcement, Mode, OutboundAction, PROBES_RULE,
};

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
    pub(super) probes_name: Arc<str>,
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
/// becomes the strictest. The identities leave the model, which would otherwise double them.
pub(super) fn compile(file: &mut File, text: &str, own: Option<&TrustDomain>) -> Policy {
    let domains = file.trust_domains.clone().unwrap_or_else(|| own.cloned().into_iter().collect());
    let sum = digest::digest(&digest::SHA256, text.as_bytes());
    Policy {
        name: file.name.clone(),
        hash: sum.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect(),
        enforcement: file.enforcement,
        trust_domains: domains.into_boxed_slice(),
        inbound: inbound(&mut file.inbound),
        outbound: outbound(&mut file.outbound),
        default_name: Arc::from(DEFAULT_RULE),
        audit_name: Arc::from(AUDIT_RULE),
        probes_name: Arc::from(PROBES_RULE),
    }
}

fn inbound(model: &mut model::Inbound) -> Inbound {
    let mut class = |action, mode| {
        let of = |rule: &model::Rule| rule.action == action && rule.mode == mode;
        let count = model.rules.iter().filter(|r| of(r)).map(|r| r.from.len()).sum();
        let mut entries = Vec::with_capacity(count);
        for (number, rule) in (0..).zip(&mut model.rules).filter(|(_, rule)| of(rule)) {
            entries.extend(rule.from.iter_mut().map(|from| {
                let addresses = from.blocks.as_deref().map(|b| Box::new(AddressSet::new(b)));
                (number, Entry { addresses, identities: from.identities.take() })
            }));
        }
        let mut sources = Vec::with_capacity(count);
        for rule in model.rules.iter().filter(|rule| of(rule)) {
            sources.extend(rule.from.iter().map(|from| Source {
                ports: rule.ports.as_ref(),
                blocks: from.blocks.as_deref().unwrap_or_default(),
            }));
        }
        RuleIndex::new(entries, &sources)
    };
    let deny = class(Action::Deny, Enforcement::Enforce);
    let allow = class(Action::Allow, Enforcement::Enforce);
    let audit_deny = class(Action::Deny, Enforcement::Audit);
    let audit_allow = class(Action::Allow, Enforcement::Audit);
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
        deny,
        allow,
        audit_deny,
        audit_allow,
    }
}

fn outbound(model: &mut model::Outbound) -> Outbound {
    let class = |action| {
        let of = || number(&model.destinations).filter(move |(_, d)| d.action == action);
        let (mut entries, mut sources) = (Vec::new(), Vec::new());
        for (number, d) in of().filter(|(_, d)| !d.blocks.is_empty()) {
            let addresses = Some(Box::new(AddressSet::new(&d.blocks)));
            entries.push((number, Entry { addresses, identities: None }));
            sources.push(Source { ports: d.ports.as_ref(), blocks: &d.blocks });
        }
        let by_host = of().filter(|(_, d)| !d.hosts.is_empty()).map(|(number, _)| number);
        OutboundClass { by_address: RuleIndex::new(entries, &sources), by_host: by_host.collect() }
    };
    let classes = [OutboundAction::Deny, OutboundAction::Mtls, OutboundAction::Passthrough];
    let classes = classes.map(class);
    let mut seen = HashSet::new();
    let hosts = model.destinations.iter().flat_map(|d| &d.hosts).filter(|host| seen.insert(*host));
    let hosts = hosts.cloned().collect();
    let destinations = model.destinations.iter_mut().map(|d| {
        Arc::new(Destination {
            name: d.name.clone(),
            action: d.action,
            ports: d.ports.clone(),
            hosts: d.hosts.clone(),
            server_identities: std::mem::take(&mut d.server_identities),
            tunnel_reuse: d.tunnel_reuse,
            line: d.pos.line,
        })
    });
    Outbound {
        default: model.default.unwrap_or(Action::Deny),
        destinations: destinations.collect(),
        classes,
        hosts,
    }
}

fn number<T>(items: &[T]) -> impl Iterator<Item = (u32, &T)> {
    (0..).zip(items)
}
