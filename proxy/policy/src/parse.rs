//! The tree to the model: the keys and values of the format, each checked where it stands.

use std::collections::HashSet;
use std::sync::Arc;

use pillion_certs::spiffe::TrustDomain;

use super::cidr::{Block, parse_net};
use super::diagnostic::{Kind, Sink};
use super::identity::{IdentitySet, Pattern, domain_of};
use super::limits::{Counts, MAX_PROBES, MAX_TRUST_DOMAINS, too_many};
use super::model::{
    At, BLOCK, DESTINATION, DOCUMENT, Destination, FROM, File, From, INBOUND, Inbound, METADATA,
    OUTBOUND, Outbound, PORT, PROBE, RULE, Rule,
};
use super::reader::Fields;
use super::yaml::{self, Node, Pos, Stream, Value, short};
use super::{Action, AppAddress, Enforcement, Mode, OutboundAction};

/// The only version of the format.
pub(super) const API_VERSION: &str = "pillion/v1alpha1";
/// The only kind of document.
pub(super) const KIND: &str = "SidecarPolicy";
/// Names that verdicts, `explain`, `diff` and the metrics carry where no rule decides, and that of
/// all the rules which the metrics don't count apart. `trustDomains` is one, too, and no DNS label.
pub(super) const RESERVED_NAMES: [&str; 6] =
    [super::DEFAULT_RULE, super::AUDIT_RULE, super::PROBES_RULE, "mtls", "tls", "other"];

const ACTIONS: &[(&str, Action)] = &[("allow", Action::Allow), ("deny", Action::Deny)];
const OUT_DEFAULTS: &[(&str, Action)] = &[("passthrough", Action::Allow), ("deny", Action::Deny)];
const ENFORCEMENTS: &[(&str, Enforcement)] =
    &[("enforce", Enforcement::Enforce), ("audit", Enforcement::Audit)];
const MODES: &[(&str, Mode)] =
    &[("strict", Mode::Strict), ("permissive", Mode::Permissive), ("disable", Mode::Disable)];
const OUT_ACTIONS: &[(&str, OutboundAction)] = &[
    ("mtls", OutboundAction::Mtls),
    ("passthrough", OutboundAction::Passthrough),
    ("deny", OutboundAction::Deny),
];

/// Reads a file. `None` after an error that leaves no document to read, which is in `sink` then.
pub(super) fn file<'t>(text: &str, own: Option<&TrustDomain>, sink: &mut Sink<'t>) -> Option<File> {
    let mut read = Read::default();
    let root = yaml::parse(text, sink, |stream, node, sink| {
        let mut reader = Reader { own, read: &mut read, sink };
        match stream {
            Stream::Rules => reader.rule(node),
            Stream::Destinations => reader.destination(node),
        };
    })?;
    Some(Reader { own, read: &mut read, sink }.document(&root))
}

const DNS_NAME: &str =
    "write a DNS name: a-z, 0-9, \"-\" and \".\", beginning and ending in a letter or digit";

/// What has been read so far.
#[derive(Default)]
struct Read {
    rules: Vec<Rule>,
    destinations: Vec<Destination>,
    rule_names: HashSet<Arc<str>>,
    destination_names: HashSet<Arc<str>>,
    /// Equal lists are one, so that rules are grouped by where their list stands.
    ports: HashSet<Arc<[u16]>>,
    /// Held against `trustDomains` at the end: it may stand below the rules.
    identities: Vec<(Pos, Arc<str>)>,
    counts: Counts,
}

struct Reader<'r, 't> {
    own: Option<&'r TrustDomain>,
    read: &'r mut Read,
    sink: &'r mut Sink<'t>,
}

impl Reader<'_, '_> {
    fn document(mut self, root: &Node) -> File {
        let mut out = File::default();
        let Some(doc) = self.sink.fields(root, &DOCUMENT) else { return out };
        for (key, word) in [("apiVersion", API_VERSION), ("kind", KIND)] {
            if let Some(node) = doc.get(key) {
                self.sink.choice(node, &[(word, ())]);
            }
        }
        let metadata = doc.get("metadata").and_then(|node| self.sink.fields(node, &METADATA));
        if let Some(node) = metadata.and_then(|fields| fields.get("name")) {
            let name = self.sink.text(node);
            if let Some(name) = name.filter(|name| !is_dns_name(name)) {
                let message = format!("\"{}\" is no name; {DNS_NAME}", short(name));
                self.sink.add(Kind::BadValue, node.pos, message);
            }
            out.name = name.map(str::to_owned).unwrap_or_default();
        }
        let enforcement =
            doc.get("enforcement").and_then(|node| self.sink.choice(node, ENFORCEMENTS));
        out.enforcement = enforcement.unwrap_or_default();
        out.trust_domains = doc.get("trustDomains").map(|node| self.trust_domains(node));
        if let Some(accepted) = self.accepted(&doc, out.trust_domains.as_deref()) {
            self.foreign(&accepted);
        }
        out.inbound = doc.get("inbound").map(|node| self.inbound(node)).unwrap_or_default();
        out.outbound = doc.get("outbound").map(|node| self.outbound(node)).unwrap_or_default();
        out
    }

    fn trust_domains(&mut self, node: &Node) -> Vec<TrustDomain> {
        let cure = "leave trustDomains out to accept our own domain alone";
        let items = self.sink.some_list(node, cure).unwrap_or_default();
        self.at_most(items, MAX_TRUST_DOMAINS, "trust domains");
        let most = usize::try_from(MAX_TRUST_DOMAINS).unwrap_or(usize::MAX);
        let items = items.iter().take(most);
        items.filter_map(|item| self.sink.parsed(item, "trust domain")).collect()
    }

    /// The domains that identities are held against. `None` where there is none to know, and for a
    /// list that couldn't be read in full.
    fn accepted(
        &self,
        doc: &Fields<'_>,
        listed: Option<&[TrustDomain]>,
    ) -> Option<HashSet<String>> {
        let domains = match (doc.get("trustDomains").map(|node| &node.value), listed) {
            (None, _) => std::slice::from_ref(self.own?),
            (Some(Value::List(items)), Some(list))
                if !items.is_empty() && items.len() == list.len() =>
            {
                list
            }
            (Some(_), _) => return None,
        };
        Some(domains.iter().map(|domain| domain.as_str().to_owned()).collect())
    }

    fn foreign(&mut self, accepted: &HashSet<String>) {
        for (pos, text) in std::mem::take(&mut self.read.identities) {
            let Some(domain) = domain_of(&text).filter(|domain| !accepted.contains(*domain)) else {
                continue;
            };
            let message = format!(
                "peers of the trust domain {} are not accepted, so \"{}\" matches nobody; add \
                 the domain to trustDomains or mend the identity",
                short(domain),
                short(&text)
            );
            self.sink.add(Kind::ForeignTrustDomain, pos, message);
        }
    }

    /// Notes a list that is too long.
    fn at_most(&mut self, items: &[Node], most: u32, what: &str) {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        if let Some(first) = items.get(most) {
            too_many(self.sink, first.pos, most, what);
        }
    }

    fn inbound(&mut self, node: &Node) -> Inbound {
        let mut out = Inbound { rules: std::mem::take(&mut self.read.rules), ..Inbound::default() };
        let Some(fields) = self.sink.fields(node, &INBOUND) else { return out };
        let mtls = fields.get("mtls");
        out.mtls = mtls.and_then(|node| self.mode(node));
        out.default = fields.get("defaultAction").and_then(|n| self.sink.choice(n, ACTIONS));
        if let Some(node) = fields.get("ports") {
            for (key, value) in self.sink.entries(node) {
                let port = self.sink.port_text(&key.text, key.pos);
                let fields = self.sink.fields(value, &PORT);
                let mode = fields.and_then(|f| f.get("mtls")).and_then(|node| self.mode(node));
                match (port, mode) {
                    (Some(port), Some(mode)) => {
                        out.ports.insert(port, At { pos: key.pos, value: mode.value });
                    }
                    // Nothing is to be said of a port by the mode of the others.
                    _ => out.mtls = None,
                }
            }
        }
        let address = fields.get("appAddress").and_then(|node| {
            let words = [("podIP", AppAddress::PodIp), ("127.0.0.1", AppAddress::Loopback)];
            self.sink.choice(node, &words)
        });
        out.app_address = address.unwrap_or_default();
        let probes = fields.get("probes").and_then(|node| self.sink.list(node));
        let probes = probes.unwrap_or_default();
        self.at_most(probes, MAX_PROBES, "probes");
        out.probes = probes.iter().filter_map(|n| self.probe(n)).collect();
        // The items have been read; that they are a list remains.
        fields.get("rules").map(|node| self.sink.list(node));
        out
    }

    fn mode(&mut self, node: &Node) -> Option<At<Mode>> {
        self.sink.choice(node, MODES).map(|value| At { pos: node.pos, value })
    }

    fn probe(&mut self, node: &Node) -> Option<(u16, Box<str>)> {
        let fields = self.sink.fields(node, &PROBE)?;
        let port = fields.get("port").and_then(|node| self.sink.port(node));
        let node = fields.get("path")?;
        let path = self.sink.text(node)?;
        // What a request line can hold between two spaces (RFC 9112 section 3), as one spelling.
        let plain = path.bytes().all(|b| b.is_ascii_graphic() && b != b'#' && b != b'?');
        if !path.starts_with('/') || !plain {
            let message = format!(
                "\"{}\" is no path; write it from its \"/\" as the kubelet asks for it, without \
                 a query",
                short(path)
            );
            self.sink.add(Kind::BadValue, node.pos, message);
            return None;
        }
        Some((port?, path.into()))
    }

    fn rule(&mut self, node: &Node) -> Option<()> {
        self.read.counts.rules(node.pos, self.sink)?;
        let fields = self.sink.fields(node, &RULE)?;
        let name = self.name(&fields, |read| &mut read.rule_names);
        let action = fields.get("action").and_then(|n| self.sink.choice(n, ACTIONS));
        let mode = match fields.get("mode") {
            None => Some(Enforcement::Enforce),
            Some(node) => self.sink.choice(node, ENFORCEMENTS),
        };
        let ports = self.ports(&fields);
        let cure = "write [{any: true}] to match everyone";
        let from = fields.get("from").and_then(|node| self.sink.some_list(node, cure))?;
        let from = all(from.iter().map(|node| self.from(node)));
        let rule = Rule {
            pos: fields.key_pos("name"),
            name: name?,
            action: action?,
            mode: mode?,
            ports: ports?,
            ports_pos: fields.get("ports").map_or(fields.pos, |node| node.pos),
            from: from?,
        };
        self.read.rules.push(rule);
        Some(())
    }

    /// A rule's or destination's name: a DNS label (RFC 1123), since it becomes a metric's label.
    fn name(
        &mut self,
        fields: &Fields<'_>,
        taken: impl FnOnce(&mut Read) -> &mut HashSet<Arc<str>>,
    ) -> Option<Arc<str>> {
        let node = fields.get("name")?;
        let name = self.sink.text(node)?;
        if !is_dns_label(name) {
            let message = format!(
                "\"{}\" is no name; write a DNS label: a-z, 0-9 and \"-\", at most 63, beginning \
                 and ending in a letter or digit",
                short(name)
            );
            self.sink.add(Kind::BadValue, node.pos, message);
        } else if RESERVED_NAMES.contains(&name) {
            let message = format!("\"{name}\" names verdicts that no rule decides; choose another");
            self.sink.add(Kind::BadValue, node.pos, message);
        } else {
            let taken = taken(self.read);
            let own: Arc<str> = Arc::from(name);
            if taken.insert(own.clone()) {
                return Some(own);
            }
            let message = format!("the name \"{name}\" is taken already; choose another");
            self.sink.add(Kind::DuplicateName, node.pos, message);
        }
        None
    }

    /// `Some(None)` without the key: every port.
    #[expect(clippy::option_option, reason = "unreadable and absent are told apart")]
    fn ports(&mut self, fields: &Fields<'_>) -> Option<Option<Arc<[u16]>>> {
        let Some(node) = fields.get("ports") else { return Some(None) };
        let items = self.sink.some_list(node, "leave ports out to mean every port")?;
        self.read.counts.ports(items, self.sink)?;
        let mut ports = all(items.iter().map(|node| self.sink.port(node)))?.into_vec();
        ports.sort_unstable();
        ports.dedup();
        if let Some(same) = self.read.ports.get(ports.as_slice()) {
            return Some(Some(same.clone()));
        }
        let ports: Arc<[u16]> = Arc::from(ports);
        self.read.ports.insert(ports.clone());
        Some(Some(ports))
    }

    fn from(&mut self, node: &Node) -> Option<From> {
        let fields = self.sink.fields(node, &FROM)?;
        let (blocks, identities) = (fields.get("ipBlocks"), fields.get("identities"));
        if let Some(any) = fields.get("any") {
            let yes = self.sink.boolean(any)?;
            if yes && blocks.is_none() && identities.is_none() {
                return Some(From { pos: node.pos, blocks: None, identities: None });
            }
            let message =
                "any stands alone and is true; leave it out beside ipBlocks or identities";
            self.sink.add(Kind::BadValue, any.pos, message);
            return None;
        }
        if blocks.is_none() && identities.is_none() {
            let message = "an empty entry matches nothing that was written; give it ipBlocks, \
                           identities or both, or write {any: true} to match everyone";
            self.sink.add(Kind::BadValue, node.pos, message);
            return None;
        }
        let blocks = blocks.map(|node| self.blocks(node));
        let identities = identities.map(|node| self.identities(node));
        let blocks = match blocks {
            Some(read) => Some(read?),
            None => None,
        };
        let identities = match identities {
            Some(read) => Some(read?),
            None => None,
        };
        Some(From { pos: node.pos, blocks, identities })
    }

    fn blocks(&mut self, node: &Node) -> Option<Box<[Block]>> {
        let items = self.sink.some_list(node, "leave ipBlocks out to match every address")?;
        self.read.counts.cidrs(items, self.sink)?;
        all(items.iter().map(|node| self.block(node)))
    }

    fn block(&mut self, node: &Node) -> Option<Block> {
        if !matches!(node.value, Value::Map(_)) {
            let net = self.net(node)?;
            return Some(Block { pos: node.pos, net, except: Box::default() });
        }
        let fields = self.sink.fields(node, &BLOCK)?;
        let net = fields.get("cidr").and_then(|node| self.net(node));
        let list = fields.get("except").map(|node| self.sink.list(node).unwrap_or_default());
        let list = list.unwrap_or_default();
        self.read.counts.cidrs(list, self.sink)?;
        let mut except = Vec::new();
        for item in list {
            let Some(inner) = self.net(item) else { continue };
            if net.is_some_and(|outer| !outer.contains(&inner)) {
                let outer = net.map(|net| net.to_string()).unwrap_or_default();
                let message = format!(
                    "{inner} is not inside {outer}, so it takes nothing away; leave it out or \
                     mend the cidr"
                );
                self.sink.add(Kind::ExceptOutside, item.pos, message);
                continue;
            }
            except.push(inner);
        }
        Some(Block { pos: node.pos, net: net?, except: except.into_boxed_slice() })
    }

    fn net(&mut self, node: &Node) -> Option<ipnet::IpNet> {
        let text = self.sink.text(node)?;
        match parse_net(text) {
            Ok(net) => Some(net),
            Err((kind, message)) => {
                self.sink.add(kind, node.pos, message);
                None
            }
        }
    }

    fn identities(&mut self, node: &Node) -> Option<IdentitySet> {
        let cure = "leave the key out to ask for no identity";
        let items = self.sink.some_list(node, cure)?;
        self.read.counts.identities(items, self.sink)?;
        Some(IdentitySet::new(all(items.iter().map(|node| self.identity(node)))?))
    }

    fn identity(&mut self, node: &Node) -> Option<Pattern> {
        let text = self.sink.text(node)?;
        match Pattern::parse(text, self.own) {
            Ok(pattern) => {
                self.read.identities.push((node.pos, pattern.text().clone()));
                Some(pattern)
            }
            Err(error) => {
                let message = format!("\"{}\" is no identity: {error}", short(text));
                self.sink.add(Kind::BadValue, node.pos, message);
                None
            }
        }
    }

    fn outbound(&mut self, node: &Node) -> Outbound {
        let mut out = Outbound {
            destinations: std::mem::take(&mut self.read.destinations),
            ..Outbound::default()
        };
        let Some(fields) = self.sink.fields(node, &OUTBOUND) else { return out };
        out.default = fields.get("defaultAction").and_then(|n| self.sink.choice(n, OUT_DEFAULTS));
        fields.get("destinations").map(|node| self.sink.list(node));
        out
    }

    fn destination(&mut self, node: &Node) -> Option<()> {
        self.read.counts.rules(node.pos, self.sink)?;
        let fields = self.sink.fields(node, &DESTINATION)?;
        let name = self.name(&fields, |read| &mut read.destination_names);
        let action = fields.get("action").and_then(|n| self.sink.choice(n, OUT_ACTIONS));
        let ports = self.ports(&fields);
        let hosts = fields.get("hosts").map(|node| self.hosts(node));
        let blocks = fields.get("ipBlocks").map(|node| self.blocks(node));
        if hosts.is_none() && blocks.is_none() {
            let message = "a destination needs hosts, ipBlocks or both; for every address write \
                           ipBlocks: [0.0.0.0/0, \"::/0\"]";
            self.sink.add(Kind::MissingKey, node.pos, message);
        }
        let identities = fields.get("serverIdentities").map(|node| self.identities(node));
        if action == Some(OutboundAction::Mtls) && identities.is_none() {
            let message = "an mtls destination needs serverIdentities: without them any workload \
                           could answer; name those that may";
            self.sink.add(Kind::MissingServerIdentities, fields.key_pos("action"), message);
            return None;
        }
        let mtls = action == Some(OutboundAction::Mtls);
        for key in ["serverIdentities", "tunnelReuse"] {
            if action.is_some() && !mtls && fields.get(key).is_some() {
                let message = format!("{key} means nothing without mtls; leave it out");
                self.sink.add(Kind::BadValue, fields.key_pos(key), message);
            }
        }
        let reuse = match fields.get("tunnelReuse") {
            None => Some(true),
            Some(node) => self.sink.boolean(node),
        };
        let destination = Destination {
            pos: fields.key_pos("name"),
            name: name?,
            hosts: hosts.unwrap_or(Some(Box::default()))?,
            blocks: blocks.unwrap_or(Some(Box::default()))?,
            ports: ports?,
            action: action?,
            server_identities: identities.unwrap_or_else(|| Some(IdentitySet::default()))?,
            tunnel_reuse: reuse?,
        };
        self.read.destinations.push(destination);
        Some(())
    }

    fn hosts(&mut self, node: &Node) -> Option<Box<[Arc<str>]>> {
        let items = self.sink.some_list(node, "leave hosts out to go by ipBlocks alone")?;
        self.read.counts.hosts(items, self.sink)?;
        all(items.iter().map(|node| self.host(node)))
    }

    fn host(&mut self, node: &Node) -> Option<Arc<str>> {
        let text = self.sink.text(node)?;
        let host = text.to_ascii_lowercase();
        let cure = if text.parse::<std::net::IpAddr>().is_ok() || text.contains('/') {
            "an address belongs in ipBlocks"
        } else if text.contains('*') {
            "a wildcard can't be resolved; write each name out"
        } else if host.ends_with('.') {
            "leave out the final dot: every name is a full one"
        } else if !is_dns_name(&host) {
            DNS_NAME
        } else if ends_in_number(&host) {
            "a name doesn't end in a number, and an address belongs in ipBlocks"
        } else {
            if !host.contains('.') {
                let message = format!(
                    "\"{host}\" is taken for a full name, and search domains are not tried; write \
                     all of it: {host}.<namespace>.svc.cluster.local, say"
                );
                self.sink.add(Kind::HostWithoutDot, node.pos, message);
            }
            return Some(Arc::from(host));
        };
        let message = format!("\"{}\" is no host name; {cure}", short(text));
        self.sink.add(Kind::BadValue, node.pos, message);
        None
    }
}

/// All the items, or `None` if one couldn't be read; each of them is read all the same.
fn all<T>(items: impl ExactSizeIterator<Item = Option<T>>) -> Option<Box<[T]>> {
    let mut out = Vec::with_capacity(items.len());
    let mut good = true;
    for item in items {
        good &= item.is_some();
        out.extend(item);
    }
    good.then(|| out.into_boxed_slice())
}

/// A DNS label in lower case (RFC 1123 section 2.1).
fn is_dns_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// A DNS name in lower case, without the final dot; names in use have underscores too, at a
/// label's beginning.
fn is_dns_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(|l| is_dns_label(l.strip_prefix('_').unwrap_or(l)))
}

/// What looks like an IPv4 address is meant as one, whatever is wrong with it. No top-level domain
/// is a number (RFC 3696, section 2).
fn ends_in_number(host: &str) -> bool {
    host.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()))
}
