//! The tour itself, chapter by chapter.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use pillion_testbed::{
    Failure, Finished, MeshOptions, Pod, Process, Sidecar, Testbed, accept, complete, finish,
};

use crate::story::{Story, hexdump};

const PORT: u16 = 8080;
const STREAM_PORT: u16 = 9000;
const SECRET: &str = "order 4711: two bicycles, paid by card";
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const ORDERS: &str = "spiffe://cluster.local/ns/shop/sa/orders";
const BATCH: &str = "spiffe://cluster.local/ns/shop/sa/batch";

/// Everyone on the stage.
struct Cast<'a> {
    bed: &'a Testbed,
    web: Pod,
    orders: Pod,
    batch: Pod,
    guest: Pod,
    _nginx: Process,
}

/// Runs the whole tour.
pub(crate) fn run() -> Result<(), Failure> {
    let mut story = Story::begin();
    let bed = Testbed::new(None)?;
    play(&mut story, &bed)?;
    let made = bed.directory().to_path_buf();
    drop(bed);
    let ours = format!("{}-", std::process::id());
    let namespaces = complete(Command::new("ip").args(["netns", "list"]))?;
    story.prove(
        "nothing of it is left behind",
        !made.exists() && !namespaces.lines().any(|line| line.contains(&ours)),
        "pods, processes and files are gone",
    )?;
    story.end();
    Ok(())
}

fn play(story: &mut Story, bed: &Testbed) -> Result<(), Failure> {
    let cast = raise_the_curtain(story, bed)?;
    on_the_wire_before(story, &cast)?;
    let (web, orders) = mesh(story, &cast)?;
    on_the_wire_after(story, &cast, &web, &orders)?;
    refuse_by_address(story, &cast, &orders)?;
    refuse_by_identity(story, &cast, &orders)?;
    edit_while_running(story, &cast, &orders)
}

fn raise_the_curtain<'a>(story: &mut Story, bed: &'a Testbed) -> Result<Cast<'a>, Failure> {
    story.chapter("Four pods");
    let (web, orders) = (bed.pod("web")?, bed.pod("orders")?);
    let (batch, guest) = (bed.pod("batch")?, bed.pod("guest")?);
    for (pod, role) in [
        (&web, "asks for orders, with curl"),
        (&orders, "serves them on port 8080, with nginx"),
        (&batch, "is on the right network, with the wrong name"),
        (&guest, "has the right name, on the wrong network"),
    ] {
        story.say(&format!("{:7} {:11} {role}", pod.name(), pod.v4()));
    }
    let nginx = serve_orders(bed, &orders)?;
    Ok(Cast { bed, web, orders, batch, guest, _nginx: nginx })
}

/// nginx with one page, as a user who has never heard of a mesh would run it.
fn serve_orders(bed: &Testbed, orders: &Pod) -> Result<Process, Failure> {
    let root = bed.directory().join("www");
    fs::create_dir(&root)?;
    fs::write(root.join("index.html"), format!("{SECRET}\n"))?;
    let config = bed.directory().join("nginx.conf");
    let (dir, root) = (bed.directory().display(), root.display());
    fs::write(
        &config,
        format!(
            "daemon off; user root; pid {dir}/nginx.pid; error_log {dir}/nginx.err;\n\
             events {{}}\n\
             http {{ access_log off; client_body_temp_path {dir}/nginx-body;\n\
             server {{ listen {PORT}; root {root}; }} }}\n"
        ),
    )?;
    let nginx = orders.spawn("nginx", orders.daemon("nginx").arg("-c").arg(&config))?;
    orders.wait_for_port(SocketAddr::new(orders.v4(), PORT))?;
    Ok(nginx)
}

fn curl(pod: &Pod, to: IpAddr) -> Result<Finished, Failure> {
    finish(pod.command("curl").args(["-sS", "--max-time", "10", &format!("http://{to}:{PORT}/")]))
}

fn on_the_wire_before(story: &mut Story, cast: &Cast<'_>) -> Result<(), Failure> {
    story.chapter("The wire as it is without a mesh");
    let capture = cast.orders.capture("before")?;
    let answer = curl(&cast.web, cast.orders.v4())?;
    let wire = capture.finish(&cast.web)?;
    story.show(&format!("web$ curl http://{}:{PORT}/\n{}", cast.orders.v4(), answer.stdout.trim()));
    story.say("What a tap on the wire sees of the answer:");
    let reply = wire.flows(PORT).find(|(flow, _)| flow.from.port() == PORT);
    let at = reply.and_then(|(_, bytes)| {
        let start = bytes.windows(SECRET.len()).position(|part| part == SECRET.as_bytes())?;
        bytes.get(start..)
    });
    story.show(&hexdump(at.unwrap_or_default(), 3));
    story.prove(
        "without a mesh anyone on the wire reads along",
        wire.contains(SECRET.as_bytes()),
        "the order is in the capture, letter for letter",
    )
}

/// Who may call orders: web, from web's own network; batch's network is right too.
fn orders_policy(cast: &Cast<'_>, identity: &str) -> String {
    format!(
        "apiVersion: pillion/v1alpha1\n\
         kind: SidecarPolicy\n\
         metadata: {{name: orders}}\n\
         inbound:\n\
         \x20 mtls: strict\n\
         \x20 defaultAction: deny\n\
         \x20 rules:\n\
         \x20 - name: shop-network\n\
         \x20   action: allow\n\
         \x20   ports: [{PORT}, {STREAM_PORT}]\n\
         \x20   from: [{{ipBlocks: [{}, {}], identities: [{identity}]}}]\n\
         outbound: {{defaultAction: passthrough, destinations: []}}\n",
        cast.web.v4(),
        cast.batch.v4(),
    )
}

fn caller_policy(cast: &Cast<'_>) -> String {
    format!(
        "apiVersion: pillion/v1alpha1\n\
         kind: SidecarPolicy\n\
         metadata: {{name: caller}}\n\
         inbound: {{mtls: strict, defaultAction: deny, rules: []}}\n\
         outbound:\n\
         \x20 defaultAction: passthrough\n\
         \x20 destinations:\n\
         \x20 - {{name: orders, ipBlocks: [{}], action: mtls, serverIdentities: [shop/orders]}}\n",
        cast.orders.v4(),
    )
}

fn mesh(story: &mut Story, cast: &Cast<'_>) -> Result<(Sidecar, Sidecar), Failure> {
    story.chapter("Sidecars");
    let ca = cast.bed.ca()?;
    story.show("pillion-certs ca --trust-domain cluster.local --out ca");
    story.say(
        "An authority for the trust domain, then a certificate for each pod, the redirect\n\
         rules (pillion-init), and the proxy as uid 1337 (pillion-proxy).",
    );
    let issued = cast.bed.issue(&ca, ORDERS, "shown")?;
    let certs = cast.bed.settings().binary("pillion-certs")?;
    let inspect = complete(cast.web.command(certs).arg("inspect").arg(issued.join("tls.crt")))?;
    story.show(&format!("pillion-certs inspect tls.crt\n{}", inspect.trim_end()));
    let policy = orders_policy(cast, "shop/web");
    story.say("The policy of orders, the one file that a person writes:");
    story.show(&policy);
    let orders = cast.orders.mesh(cast.bed, MeshOptions::new(policy, ORDERS))?;
    let web = cast.web.mesh(cast.bed, MeshOptions::new(caller_policy(cast), WEB))?;
    let rules = complete(&mut cast.web.shell("iptables-save -t nat | grep -c PILLION_"))?;
    story.prove(
        "one init container is all that redirection needs",
        rules.trim().parse::<u32>().is_ok_and(|n: u32| n > 10),
        format!("{} lines of rules in the pod, both proxies are ready", rules.trim()),
    )?;
    Ok((web, orders))
}

fn on_the_wire_after(
    story: &mut Story,
    cast: &Cast<'_>,
    web: &Sidecar,
    orders: &Sidecar,
) -> Result<(), Failure> {
    story.chapter("The same request again");
    let capture = cast.orders.capture("after")?;
    let answer = curl(&cast.web, cast.orders.v4())?;
    let wire = capture.finish(&cast.web)?;
    story.show(&format!("web$ curl http://{}:{PORT}/\n{}", cast.orders.v4(), answer.stdout.trim()));
    story.prove(
        "an allowed peer gets the same answer as before",
        answer.stdout.trim() == SECRET,
        format!("\"{}\"", answer.stdout.trim()),
    )?;
    story.say("What the tap sees now:");
    let reply = wire.flows(PORT).find(|(flow, _)| flow.from.port() == PORT);
    story.show(&hexdump(reply.map(|(_, bytes)| bytes).unwrap_or_default(), 3));
    let (tls, other) = wire.summary(PORT);
    story.prove(
        "the wire carries TLS and nothing else",
        !wire.contains(SECRET.as_bytes()) && tls > 0 && other == 0,
        format!("{tls} flows of TLS records, {other} of anything else, no word of the order"),
    )?;
    let seen = orders.wait_logs("the request", 1, |line| line.is("inbound", "closed"))?;
    let peer = seen.first().map(|line| line.text("peer")).unwrap_or_default();
    let sent = web.wait_logs("the request", 1, |line| line.is("outbound", "closed"))?;
    let server = sent.first().map(|line| line.text("peer")).unwrap_or_default();
    story.prove(
        "each side has proven who it is",
        peer == WEB && server == ORDERS,
        format!("orders saw {peer}"),
    )
}

fn refuse_by_address(story: &mut Story, cast: &Cast<'_>, orders: &Sidecar) -> Result<(), Failure> {
    story.chapter("Refused: the right name on the wrong network");
    let plain = curl(&cast.guest, cast.orders.v4())?;
    story.show(&format!(
        "guest$ curl http://{}:{PORT}/    (no sidecar yet)\n{}",
        cast.orders.v4(),
        plain.stderr.trim()
    ));
    let _sidecar = cast.guest.mesh(cast.bed, MeshOptions::new(caller_policy(cast), WEB))?;
    story.say("Now guest gets a sidecar, and even a certificate that says shop/web:");
    let answer = curl(&cast.guest, cast.orders.v4())?;
    story.show(&format!(
        "guest$ curl http://{}:{PORT}/\n{}",
        cast.orders.v4(),
        answer.stderr.trim()
    ));
    let from = cast.guest.v4().to_string();
    let denied = orders.wait_logs("a denial by address", 2, |line| {
        line.is("inbound", "denied") && line.text("source").starts_with(&from)
    })?;
    let bytes: String = denied.iter().map(|line| line.text("bytes_to_app")).collect();
    story.prove(
        "a peer outside the allowed addresses is refused",
        plain.code != Some(0) && answer.code != Some(0) && bytes.bytes().all(|b| b == b'0'),
        format!("{from} was denied before any TLS, and nginx got not one byte"),
    )
}

fn refuse_by_identity(story: &mut Story, cast: &Cast<'_>, orders: &Sidecar) -> Result<(), Failure> {
    story.chapter("Refused: the right network with the wrong name");
    let plain = curl(&cast.batch, cast.orders.v4())?;
    story.show(&format!(
        "batch$ curl http://{}:{PORT}/    (no sidecar yet)\n{}",
        cast.orders.v4(),
        plain.stderr.trim()
    ));
    story.say("What curl could not read is a TLS alert. nginx never heard of it.");
    orders.wait_logs("refused plaintext", 1, |line| line.is("inbound", "plaintext_refused"))?;
    story.prove(
        "plaintext is refused where mTLS is wanted",
        plain.code != Some(0),
        "the address was right, and a strict port still wants a certificate",
    )?;
    let _sidecar = cast.batch.mesh(cast.bed, MeshOptions::new(caller_policy(cast), BATCH))?;
    let answer = curl(&cast.batch, cast.orders.v4())?;
    story.show(&format!(
        "batch$ curl http://{}:{PORT}/    (as shop/batch)\n{}",
        cast.orders.v4(),
        answer.stderr.trim()
    ));
    let denied = orders.wait_logs("a denial by identity", 1, |line| {
        line.is("inbound", "denied") && line.text("peer") == BATCH
    })?;
    story.prove(
        "a peer with another identity is refused",
        answer.code != Some(0) && !denied.is_empty(),
        format!("{BATCH} shook hands, and was told no"),
    )
}

fn edit_while_running(story: &mut Story, cast: &Cast<'_>, orders: &Sidecar) -> Result<(), Failure> {
    story.chapter("A policy edited while a connection is open");
    let listener = cast.orders.listen(SocketAddr::new(cast.orders.v4(), STREAM_PORT))?;
    let mut client = cast.web.connect(listener.local_addr()?)?;
    let mut server = accept(&listener)?;
    client.write_all(b"still there?")?;
    let mut heard = [0; 12];
    server.read_exact(&mut heard)?;
    story.say("web holds a stream open to orders, and bytes flow. Now somebody edits one word:");
    story.show(
        "-   from: [{..., identities: [shop/web]}]\n+   from: [{..., identities: [shop/nobody]}]",
    );
    let edited = Instant::now();
    orders.set_policy(&orders_policy(cast, "shop/nobody"))?;
    let ended = matches!(client.read(&mut [0; 1]), Ok(0) | Err(_));
    let took = edited.elapsed();
    let told = orders
        .wait_logs("the end of the stream", 1, |line| line.is("inbound", "policy_changed"))?;
    story.prove(
        "a tightened policy ends what it denies, at once",
        ended && !told.is_empty() && took < Duration::from_secs(1),
        format!("the open stream ended {} ms after the edit", took.as_millis()),
    )?;
    orders.set_policy(&orders_policy(cast, "shop/web"))?;
    let back =
        pillion_testbed::wait_until("orders answering again", Duration::from_secs(5), || {
            let answer = curl(&cast.web, cast.orders.v4())?;
            Ok((answer.stdout.trim() == SECRET).then_some(()))
        });
    story.prove("and the edit back lets web in again", back.is_ok(), "no restart, no redeploy")
}
