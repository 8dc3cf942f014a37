//! Destinations by name, with a nameserver that changes its mind, lies and dies.

use std::fs;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pillion_testbed::labels::{CLIENT, SERVER, direction, field, metric, reason};
use pillion_testbed::stream::{ask, pass, read_exactly, read_to_end};
use pillion_testbed::{
    Context, Failure, LogLine, MeshOptions, Pod, Process, Sidecar, Testbed, accept, policy, run,
    untouched, wait_until,
};

const APP: u16 = 8080;
const LIMIT: Duration = Duration::from_secs(10);

/// The proxy asks again on a miss at most once in this time, a name.
const MISS_FLOOR: Duration = Duration::from_secs(1);

/// No test lasts for as long as an answer with this time to live holds, in seconds.
const LONG: u32 = 300;

/// A name and its addresses.
type Record<'a> = (&'a str, &'a [IpAddr]);

/// A pod with a nameserver, whose answers can be changed while it runs. It has no one to ask
/// itself: what it does not know, it refuses to answer.
struct Nameserver {
    pod: Pod,
    process: Process,
    records: PathBuf,
}

impl Nameserver {
    fn start(bed: &Testbed, seconds: u32, records: &[Record<'_>]) -> Result<Self, Failure> {
        Self::start_in(bed.pod("dns")?, "known.test", seconds, records)
    }

    /// Of the domain `all` it knows everything: what it does not know there does not exist.
    fn start_in(
        pod: Pod,
        all: &str,
        seconds: u32,
        records: &[Record<'_>],
    ) -> Result<Self, Failure> {
        let file = pod.path("records");
        write_records(&file, records)?;
        let mut command = pod.daemon("dnsmasq");
        command.args(["--keep-in-foreground", "--log-facility=-", "--user=root", "--no-resolv"]);
        command.args(["--no-hosts", "--conf-file=/dev/null", "--bind-interfaces"]);
        command.arg(format!("--listen-address={}", pod.v4()));
        command.arg(format!("--local-ttl={seconds}"));
        command.arg(format!("--local=/{all}/"));
        command.arg(format!("--pid-file={}", pod.path("pid").display()));
        command.arg(format!("--addn-hosts={}", file.display()));
        let process = pod.spawn("dnsmasq", &mut command)?;
        pod.wait_for_port(SocketAddr::new(pod.v4(), 53))?;
        Ok(Self { pod, process, records: file })
    }

    /// Changes the answers, and returns when the new ones are given.
    fn answer(&self, records: &[Record<'_>]) -> Result<(), Failure> {
        let read = format!("read {}", self.records.display());
        let times = || Ok::<_, Failure>(self.process.stderr()?.matches(&read).count());
        let before = times()?;
        write_records(&self.records, records)?;
        self.process.signal(Signal::SIGHUP)?;
        wait_until("the nameserver's new answers", LIMIT, || Ok((times()? > before).then_some(())))
    }

    /// The resolv.conf of those who ask it.
    fn resolv_conf(&self) -> Result<PathBuf, Failure> {
        self.resolv_conf_before(&[])
    }

    /// The resolv.conf of those who ask it, and then others.
    fn resolv_conf_before(&self, others: &[&Self]) -> Result<PathBuf, Failure> {
        let file = self.pod.path("resolv.conf");
        let all = [self].into_iter().chain(others.iter().copied());
        let lines: String = all.map(|one| format!("nameserver {}\n", one.pod.v4())).collect();
        fs::write(&file, lines)?;
        Ok(file)
    }
}

fn write_records(file: &PathBuf, records: &[Record<'_>]) -> Result<(), Failure> {
    let lines: String = records
        .iter()
        .flat_map(|(name, addresses)| addresses.iter().map(move |a| format!("{a} {name}\n")))
        .collect();
    fs::write(file, lines).context(|| file.display().to_string())
}

/// Outbound by name: `orders.shop.test` is meshed; further destinations may stand before it.
fn by_name(default: &str, before: &str) -> String {
    policy::with_body(&format!(
        "inbound: {{mtls: strict, defaultAction: deny}}\n\
         outbound:\n  defaultAction: {default}\n  destinations:\n{before}\
         \x20 - {{name: orders, hosts: [orders.shop.test], action: mtls, \
         serverIdentities: [\"{SERVER}\"]}}\n"
    ))
}

fn serve(bed: &Testbed, server: &Pod) -> Result<Sidecar, Failure> {
    server.mesh(bed, MeshOptions::new(policy::serve(&[CLIENT]), SERVER))
}

fn call(bed: &Testbed, client: &Pod, dns: &Nameserver, text: &str) -> Result<Sidecar, Failure> {
    let options = MeshOptions::new(text.to_owned(), CLIENT).resolv_conf(&dns.resolv_conf()?);
    client.mesh(bed, options)
}

/// One message there and back over a new connection to each address.
fn exchange(client: &Pod, server: &Pod, addresses: &[IpAddr]) -> Result<(), Failure> {
    for address in addresses {
        let listener = server.listen(SocketAddr::new(*address, APP))?;
        let mut asking = client.connect(listener.local_addr()?)?;
        asking.write_all(b"to whom it may concern")?;
        let mut answering = accept(&listener)?;
        assert_eq!(read_exactly(&mut answering, 22)?, b"to whom it may concern");
        pass(&mut answering, &mut asking, b"and back")?;
    }
    Ok(())
}

/// Waits until the proxy may ask again, whatever it asked before.
fn pass_miss_floor() -> Result<(), Failure> {
    let start = Instant::now();
    wait_until("the next question", LIMIT, || {
        Ok((start.elapsed() > MISS_FLOOR + Duration::from_millis(200)).then_some(()))
    })
}

/// Calls addresses that no name has: it makes the proxy ask for all of them. Nobody listens there.
fn miss(client: &Pod, dns: &Nameserver) -> Result<(), Failure> {
    pass_miss_floor()?;
    for address in dns.pod.addresses() {
        let outcome = ask(client, SocketAddr::new(address, APP), b"anybody?")?;
        assert!(outcome.is_turned_away(), "{outcome:?}");
    }
    Ok(())
}

/// Checks that exactly `count` connections left, all by `rule` and in `tls`.
fn all_left(caller: &Sidecar, count: usize, tls: &str, rule: &str) -> Result<(), Failure> {
    let picked = |line: &LogLine| line.text(field::TLS) == tls && line.text(field::RULE) == rule;
    let lines = caller.wait_logs(&format!("{tls} by {rule}"), count, picked)?;
    assert_eq!(lines.len(), count, "{lines:?}");
    assert!(lines.iter().all(|line| line.is(direction::OUTBOUND, reason::CLOSED)), "{lines:?}");
    let by_rule = [("direction", direction::OUTBOUND), ("decision", "allow"), ("rule", rule)];
    caller.wait_metric(metric::DECISIONS, &by_rule, count as f64)
}

#[test]
fn a_name_stands_for_its_addresses_and_a_new_one_is_found_at_once() {
    run("hosts", |bed| {
        let (server, next, client) = (bed.pod("srv")?, bed.pod("nxt")?, bed.pod("cli")?);
        let (old, new) = (server.addresses(), next.addresses());
        let dns = Nameserver::start(bed, LONG, &[("orders.shop.test", &old)])?;
        let _callees = (serve(bed, &server)?, serve(bed, &next)?);
        let caller = call(bed, &client, &dns, &by_name("passthrough", ""))?;
        exchange(&client, &server, &old)?;
        all_left(&caller, old.len(), "mtls", "orders")?;

        dns.answer(&[("orders.shop.test", &new)])?;
        pass_miss_floor()?;
        // Strict, it would refuse plaintext; the old answer would have held for minutes yet.
        exchange(&client, &next, &new)?;
        all_left(&caller, old.len() + new.len(), "mtls", "orders")?;
        let decisions = caller.metrics()?.by(metric::DECISIONS, "rule");
        assert_eq!(decisions.keys().collect::<Vec<_>>(), ["orders"], "{decisions:?}");
        Ok(())
    });
}

/// The question for the address of `orders.shop.test`, over TCP (RFC 1035, 4.2.2).
fn ask_over_tcp(client: &Pod, dns: &Nameserver) -> Result<(), Failure> {
    let header = b"\0\x22\x12\x34\x01\0\0\x01\0\0\0\0\0\0";
    let question = b"\x06orders\x04shop\x04test\0\0\x01\0\x01";
    let mut stream = client.connect(SocketAddr::new(dns.pod.v4(), 53))?;
    stream.write_all(&[header.as_slice(), question].concat())?;
    let answer = read_exactly(&mut stream, 10)?;
    assert_eq!(answer.get(2..4), Some([0x12, 0x34].as_slice()), "not to the question: {answer:?}");
    assert_eq!(answer.get(8..10), Some([0, 1].as_slice()), "not one address: {answer:?}");
    Ok(())
}

/// The app asks over TCP as well, which the policy never matches: neither here, where it denies
/// all else.
#[test]
fn where_all_else_is_denied_names_and_the_nameserver_are_reached() {
    run("hosts-deny", |bed| {
        let (server, other, client) = (bed.pod("srv")?, bed.pod("oth")?, bed.pod("cli")?);
        let addresses = server.addresses();
        let dns = Nameserver::start(bed, LONG, &[("orders.shop.test", &addresses)])?;
        let _callee = serve(bed, &server)?;
        let caller = call(bed, &client, &dns, &by_name("deny", ""))?;
        ask_over_tcp(&client, &dns)?;
        exchange(&client, &server, &addresses)?;
        all_left(&caller, addresses.len(), "mtls", "orders")?;
        for (to, port) in [(&other, APP), (&dns.pod, 80), (&other, 53)] {
            let app = to.listen(SocketAddr::new(to.v4(), port))?;
            assert!(ask(&client, app.local_addr()?, b"in the clear?")?.is_turned_away());
            untouched(&app)?;
        }
        let labels = [("direction", direction::OUTBOUND), ("reason", reason::DENIED)];
        caller.wait_metric(metric::CLOSED, &labels, 3.0)
    });
}

/// A forged answer that adds an address to a name takes nothing from what is protected. One that
/// leaves an address out may: `docs/security.md` says so, and this does not look at it.
#[test]
fn no_answer_turns_mtls_into_plaintext() {
    run("hosts-forged", |bed| {
        let (server, ledger, open) = (bed.pod("srv")?, bed.pod("led")?, bed.pod("opn")?);
        let client = bed.pod("cli")?;
        let (orders, ledgers, opens) = (server.addresses(), ledger.addresses(), open.addresses());
        let honest: [Record<'_>; 2] = [("orders.shop.test", &orders), ("open.shop.test", &opens)];
        let dns = Nameserver::start(bed, LONG, &honest)?;
        let _callees = (serve(bed, &server)?, serve(bed, &ledger)?);
        let blocks: Vec<String> = ledgers.iter().map(|ip| format!("\"{ip}\"")).collect();
        let before = format!(
            "  - {{name: open, hosts: [open.shop.test], action: passthrough}}\n\
             \x20 - {{name: ledger, ipBlocks: [{}], action: mtls, \
             serverIdentities: [\"{SERVER}\"]}}\n",
            blocks.join(", ")
        );
        let caller = call(bed, &client, &dns, &by_name("passthrough", &before))?;
        exchange(&client, &open, &opens)?;
        all_left(&caller, opens.len(), "passthrough", "open")?;

        let forged = [orders.clone(), ledgers.clone()].concat();
        dns.answer(&[("orders.shop.test", &orders), ("open.shop.test", &forged)])?;
        // Any address that is not known makes the proxy ask, and swallow the lie.
        miss(&client, &dns)?;
        exchange(&client, &open, &opens)?;
        let unnamed = |line: &LogLine| {
            line.is(direction::OUTBOUND, reason::CLOSED) && line.text(field::RULE) == "default"
        };
        caller.wait_logs("what the lie has left of the name", opens.len(), unnamed)?;
        exchange(&client, &server, &orders)?;
        all_left(&caller, orders.len(), "mtls", "orders")?;
        exchange(&client, &ledger, &ledgers)?;
        all_left(&caller, ledgers.len(), "mtls", "ledger")
    });
}

#[test]
fn a_nameserver_that_dies_takes_no_address_away() {
    run("hosts-dead", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let addresses = server.addresses();
        let dns = Nameserver::start(bed, 1, &[("orders.shop.test", &addresses)])?;
        let _callee = serve(bed, &server)?;
        let caller = call(bed, &client, &dns, &by_name("passthrough", ""))?;
        exchange(&client, &server, &addresses)?;
        drop(dns);
        // Asked again when its time is over, the name has no answer.
        caller.wait_message("can't be resolved")?;
        exchange(&client, &server, &addresses)?;
        all_left(&caller, 2 * addresses.len(), "mtls", "orders")
    });
}

/// A connection that is open to the first of `server`'s addresses: the caller's end, then the app's.
fn open(client: &Pod, server: &Pod) -> Result<(TcpStream, TcpStream), Failure> {
    let listener = server.listen(SocketAddr::new(server.v4(), APP))?;
    let mut asking = client.connect(listener.local_addr()?)?;
    let mut answering = accept(&listener)?;
    pass(&mut asking, &mut answering, b"to whom it may concern")?;
    Ok((asking, answering))
}

#[test]
fn a_new_address_of_a_name_ends_what_is_open_to_it_and_one_that_is_left_out_ends_nothing() {
    run("hosts-open", |bed| {
        let (server, other, client) = (bed.pod("srv")?, bed.pod("oth")?, bed.pod("cli")?);
        let (addresses, others) = (server.addresses(), other.addresses());
        let dns = Nameserver::start(bed, LONG, &[("orders.shop.test", &addresses)])?;
        let _callee = serve(bed, &server)?;
        let caller = call(bed, &client, &dns, &by_name("passthrough", ""))?;
        let (mut asking, mut answering) = open(&client, &server)?;
        let (mut plain, mut plainly) = open(&client, &other)?;

        dns.answer(&[("orders.shop.test", &others)])?;
        miss(&client, &dns)?;
        assert_eq!(read_to_end(&mut plain)?.0, b"");
        assert_eq!(read_to_end(&mut plainly)?.0, b"");
        drop((plain, plainly));
        let lines = caller.wait_ended(direction::OUTBOUND, reason::POLICY_CHANGED, 1)?;
        assert!(
            lines.iter().all(|line| line.text(field::DETAIL).ends_with(": orders")),
            "{lines:?}"
        );
        // Not even where all else is denied from now on.
        pass(&mut asking, &mut answering, b"one more")?;
        caller.load_policy(&by_name("deny", ""))?;
        pass(&mut answering, &mut asking, b"and back")?;
        drop((asking, answering));
        all_left(&caller, 1, "mtls", "orders")
    })
}

/// It says at once that there is no such name, and the one whose name it is takes a little longer,
/// or is silent.
#[test]
fn a_nameserver_that_is_not_asked_first_takes_no_address_away() {
    run("hosts-two", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let addresses = server.addresses();
        let dns = Nameserver::start(bed, 1, &[("orders.shop.test", &addresses)])?;
        let elsewhere = Nameserver::start_in(bed.pod("els")?, "shop.test", 1, &[])?;
        let _callee = serve(bed, &server)?;
        let resolv_conf = dns.resolv_conf_before(&[&elsewhere])?;
        let text = by_name("passthrough", "");
        let options = MeshOptions::new(text, CLIENT).resolv_conf(&resolv_conf);
        let caller = client.mesh(bed, options)?;
        for _ in 0..5 {
            exchange(&client, &server, &addresses)?;
            miss(&client, &dns)?;
        }
        dns.process.signal(Signal::SIGSTOP)?;
        caller.wait_message("can't be resolved")?;
        exchange(&client, &server, &addresses)?;
        all_left(&caller, 6 * addresses.len(), "mtls", "orders")
    });
}

/// It knows nothing, and says so. The next one is asked.
#[test]
fn a_nameserver_that_refuses_is_passed_over() {
    run("hosts-refuse", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let addresses = server.addresses();
        let dns = Nameserver::start(bed, 1, &[("orders.shop.test", &addresses)])?;
        let refuses = Nameserver::start_in(bed.pod("ref")?, "known.test", 1, &[])?;
        let _callee = serve(bed, &server)?;
        let resolv_conf = refuses.resolv_conf_before(&[&dns])?;
        let text = by_name("deny", "");
        let options = MeshOptions::new(text, CLIENT).resolv_conf(&resolv_conf);
        let caller = client.mesh(bed, options)?;
        exchange(&client, &server, &addresses)?;
        all_left(&caller, addresses.len(), "mtls", "orders")
    });
}

/// Whose addresses nobody has ever said cannot be told from the rest: nothing is served before.
#[test]
fn without_a_nameserver_it_is_not_ready() {
    run("hosts-none", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let addresses = server.addresses();
        let dns = Nameserver::start(bed, LONG, &[("orders.shop.test", &addresses)])?;
        let resolv_conf = dns.resolv_conf()?;
        dns.process.signal(Signal::SIGSTOP)?;
        let _callee = serve(bed, &server)?;
        let text = by_name("passthrough", "");
        let options = MeshOptions::new(text, CLIENT).resolv_conf(&resolv_conf);
        let mut caller = client.mesh_unready(bed, options)?;
        caller.wait_message("can't be resolved")?;
        let outcome = ask(&client, SocketAddr::new(server.v4(), APP), b"in the clear?")?;
        assert!(outcome.is_turned_away(), "{outcome:?}");
        let unresolved = [("direction", direction::OUTBOUND), ("reason", reason::NAME_UNRESOLVED)];
        caller.wait_metric(metric::CLOSED, &unresolved, 1.0)?;
        caller.wait_logs("the refusal", 1, |line| {
            line.is(direction::OUTBOUND, reason::NAME_UNRESOLVED)
                && line.text(field::DETAIL).contains("orders.shop.test")
        })?;
        let (status, pending) = caller.health("/healthz/ready")?;
        assert_eq!((status, pending.as_str()), (503, "pending: names in the policy\n"));

        dns.process.signal(Signal::SIGCONT)?;
        caller.wait_ready()?;
        exchange(&client, &server, &addresses)?;
        all_left(&caller, addresses.len(), "mtls", "orders")
    });
}

/// One of the two questions is answered and the other refused: that is no answer for the other.
#[test]
fn half_an_answer_takes_no_address_away() {
    run("hosts-half", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let addresses = server.addresses();
        let [v4, v6] = addresses.as_slice() else { return Ok(()) };
        let (v4, v6) = (std::slice::from_ref(v4), std::slice::from_ref(v6));
        let dns = Nameserver::start(bed, 1, &[("orders.shop.test", &addresses)])?;
        let _callee = serve(bed, &server)?;
        let caller = call(bed, &client, &dns, &by_name("passthrough", ""))?;
        exchange(&client, &server, &addresses)?;
        for half in [v6, v4] {
            dns.answer(&[("orders.shop.test", half)])?;
            miss(&client, &dns)?;
            exchange(&client, &server, &addresses)?;
        }
        all_left(&caller, 3 * addresses.len(), "mtls", "orders")
    });
}

/// Where everything else is denied, too, and without a rule for the nameserver itself.
#[test]
fn where_all_else_is_denied_a_new_address_is_found_at_once() {
    run("hosts-deny", |bed| {
        let (server, next, client) = (bed.pod("srv")?, bed.pod("nxt")?, bed.pod("cli")?);
        let (old, new) = (server.addresses(), next.addresses());
        let dns = Nameserver::start(bed, LONG, &[("orders.shop.test", &old)])?;
        let _callees = (serve(bed, &server)?, serve(bed, &next)?);
        let caller = call(bed, &client, &dns, &by_name("deny", ""))?;
        ask_over_tcp(&client, &dns)?;
        exchange(&client, &server, &old)?;

        dns.answer(&[("orders.shop.test", &new)])?;
        pass_miss_floor()?;
        exchange(&client, &next, &new)?;
        all_left(&caller, old.len() + new.len(), "mtls", "orders")
    });
}

/// An address that two names have in turn: the second is looked up though the first has it yet.
#[test]
fn a_stricter_name_that_takes_over_an_address_is_found_at_once() {
    run("hosts-taken", |bed| {
        let (server, next, client) = (bed.pod("srv")?, bed.pod("nxt")?, bed.pod("cli")?);
        let (old, new) = (server.addresses(), next.addresses());
        let before: [Record<'_>; 2] = [("orders.shop.test", &old), ("open.shop.test", &new)];
        let dns = Nameserver::start(bed, LONG, &before)?;
        let _callees = (serve(bed, &server)?, serve(bed, &next)?);
        let open = "  - {name: open, hosts: [open.shop.test], action: passthrough}\n";
        let caller = call(bed, &client, &dns, &by_name("passthrough", open))?;
        exchange(&client, &server, &old)?;

        dns.answer(&[("orders.shop.test", &new)])?;
        pass_miss_floor()?;
        // Strict, it would refuse plaintext.
        exchange(&client, &next, &new)?;
        all_left(&caller, old.len() + new.len(), "mtls", "orders")
    })
}

/// The time to live of an answer is five seconds at the least.
#[test]
fn past_its_time_a_name_without_an_answer_may_be_any_address() {
    run("hosts-stale", |bed| {
        let (server, other, client) = (bed.pod("srv")?, bed.pod("oth")?, bed.pod("cli")?);
        let addresses = server.addresses();
        let dns = Nameserver::start(bed, 1, &[("orders.shop.test", &addresses)])?;
        let _callee = serve(bed, &server)?;
        let caller = call(bed, &client, &dns, &by_name("passthrough", ""))?;
        let plain = [other.v4()];
        exchange(&client, &other, &plain)?;

        dns.process.signal(Signal::SIGSTOP)?;
        wait_until("an IPv4 address without an answer", LIMIT, || {
            let told = caller.messages("can't be resolved")?;
            Ok(told.iter().any(|line| line.text("family") == "A").then_some(()))
        })?;
        let app = other.listen(SocketAddr::new(other.v4(), APP))?;
        assert!(ask(&client, app.local_addr()?, b"in the clear?")?.is_turned_away());
        untouched(&app)?;
        drop(app);
        let unresolved = [("direction", direction::OUTBOUND), ("reason", reason::NAME_UNRESOLVED)];
        caller.wait_metric(metric::CLOSED, &unresolved, 1.0)?;
        // What it was known to have, it has.
        exchange(&client, &server, &addresses)?;
        all_left(&caller, addresses.len(), "mtls", "orders")?;

        dns.process.signal(Signal::SIGCONT)?;
        caller.wait_message("can be resolved again")?;
        pass_miss_floor()?;
        exchange(&client, &other, &plain)
    })
}

/// A letter is missing, and the name with it.
#[test]
fn a_name_that_does_not_exist_is_told_of() {
    run("hosts-typo", |bed| {
        let client = bed.pod("cli")?;
        let dns = Nameserver::start(bed, 1, &[("orders.shop.test", &client.addresses())])?;
        let typo = "  - {name: typo, hosts: [oders.known.test], action: deny}\n";
        let caller = call(bed, &client, &dns, &by_name("passthrough", typo))?;
        let told = caller.wait_message("has no address")?;
        assert!(told.iter().all(|line| line.text("host") == "oders.known.test"), "{told:?}");
        caller.wait_metric(metric::HOSTS_WITHOUT_ADDRESS, &[], 1.0)?;
        // Looked up again, and told once: five seconds on, it is due.
        let asked = Instant::now();
        wait_until("the next question", LIMIT, || {
            Ok((asked.elapsed() > Duration::from_secs(7)).then_some(()))
        })?;
        assert_eq!(caller.messages("has no address")?.len(), 1);
        let addresses = client.addresses();
        dns.answer(&[("orders.shop.test", &addresses), ("oders.known.test", &addresses)])?;
        caller.wait_message("has an address now")?;
        caller.wait_metric(metric::HOSTS_WITHOUT_ADDRESS, &[], 0.0)
    })
}

/// Of an AAAA record with an IPv4-mapped address, the app's connection goes to the IPv4 one.
#[test]
fn a_mapped_address_is_the_ipv4_one() {
    run("hosts-mapped", |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let IpAddr::V4(v4) = server.v4() else { return Ok(()) };
        let mapped = [IpAddr::V6(v4.to_ipv6_mapped())];
        let dns = Nameserver::start(bed, LONG, &[("orders.shop.test", &mapped)])?;
        let _callee = serve(bed, &server)?;
        // Not an address that the default lets through: it is the name's.
        let caller = call(bed, &client, &dns, &by_name("deny", ""))?;
        exchange(&client, &server, &[server.v4()])?;
        all_left(&caller, 1, "mtls", "orders")
    })
}

/// A policy that denies by default what it allows by a name, which it is the first to have.
#[test]
fn a_connection_is_not_ended_before_its_name_is_looked_up() {
    run("hosts-new", |bed| {
        let (server, other, client) = (bed.pod("srv")?, bed.pod("oth")?, bed.pod("cli")?);
        let named = server.addresses();
        let dns = Nameserver::start(bed, LONG, &[("open.shop.test", &named)])?;
        let options = MeshOptions::new(policy::pass(), CLIENT).resolv_conf(&dns.resolv_conf()?);
        let caller = client.mesh(bed, options)?;
        let dial = |to: &Pod| {
            let listener = to.listen(SocketAddr::new(to.v4(), APP))?;
            let mut asking = client.connect(listener.local_addr()?)?;
            asking.write_all(b"here to stay")?;
            let mut answering = accept(&listener)?;
            assert_eq!(read_exactly(&mut answering, 12)?, b"here to stay");
            Ok::<_, Failure>((asking, answering))
        };
        let (mut asking, mut answering) = dial(&server)?;
        let _ends = dial(&other)?;
        let text = policy::with_body(
            "inbound: {mtls: strict, defaultAction: deny}\n\
             outbound: {defaultAction: deny, destinations: [\
             {name: open, hosts: [open.shop.test], action: passthrough}]}\n",
        );
        caller.load_policy(&text)?;
        // Once the name is known, the default ends what is not its own, and nothing else.
        let ended = [("direction", direction::OUTBOUND), ("reason", reason::POLICY_CHANGED)];
        caller.wait_metric(metric::CLOSED, &ended, 1.0)?;
        pass(&mut asking, &mut answering, b"still here")?;
        pass(&mut answering, &mut asking, b"so am I")?;
        assert_eq!(caller.metric(metric::CLOSED, &ended)?, 1.0);
        Ok(())
    })
}
