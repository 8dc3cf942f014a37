//! What `explain` says that a file would end is what ends once that file is live, and nothing else.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Output, Stdio};

use pillion_testbed::labels::{CLIENT, SERVER, STRANGER, direction, field, port, reason};
use pillion_testbed::stream::{pass, read_to_end};
use pillion_testbed::{Failure, MeshOptions, Pod, Sidecar, Testbed, accept, http_get, policy, run};

const APP: u16 = 8080;

/// `explain` on a file that isn't live, with `how` to come by the connections.
fn preview(
    bed: &Testbed,
    pod: &Pod,
    text: &str,
    how: &[&str],
) -> Result<(Output, String), Failure> {
    preview_of(bed, pod, text, how, Stdio::null())
}

/// The same, with something on standard input.
fn preview_of(
    bed: &Testbed,
    pod: &Pod,
    text: &str,
    how: &[&str],
    input: impl Into<Stdio>,
) -> Result<(Output, String), Failure> {
    let file = bed.directory().join("next.yaml");
    fs::write(&file, text)?;
    let mut command = pod.command(pod.settings().binary("pillion-proxy")?);
    command.arg("explain").arg("-f").arg(&file).args(["--trust-domain", "cluster.local"]).args(how);
    let output = command.stdin(input).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{said}{}", String::from_utf8_lossy(&output.stderr));
    Ok((output, said))
}

/// The sources that were said to end, each with the rule.
fn ending(said: &str) -> Vec<(String, String)> {
    let end = said.lines().filter(|line| line.starts_with("ends "));
    let mut all: Vec<_> = end
        .map(|line| {
            let mut words = line.split_whitespace();
            let source = words.nth(2).unwrap_or_default();
            (source.to_owned(), words.next_back().unwrap_or_default().to_owned())
        })
        .collect();
    all.sort();
    all
}

/// The same, as the proxy's log has it.
fn ended(callee: &Sidecar, count: usize) -> Result<Vec<(String, String)>, Failure> {
    let lines = callee.wait_logs("ends by policy", count, |line| {
        line.is(direction::INBOUND, reason::POLICY_CHANGED)
    })?;
    let rule = |detail: &str| detail.rsplit(' ').next().unwrap_or_default().to_owned();
    let mut all: Vec<_> = lines
        .iter()
        .map(|line| (line.text(field::SOURCE).to_owned(), rule(&line.text(field::DETAIL))))
        .collect();
    all.sort();
    Ok(all)
}

#[test]
fn what_explain_says_would_end_is_what_ends() {
    run("preview", |bed| {
        let server = bed.pod("srv")?;
        let callee =
            server.mesh(bed, MeshOptions::new(policy::serve_in_mode("permissive"), SERVER))?;
        let listener = server.listen(SocketAddr::new(server.v4(), APP))?;
        let (plain, known, other) = (bed.pod("pln")?, bed.pod("cli")?, bed.pod("str")?);
        let call = policy::call(&server.addresses(), SERVER);
        let _known = known.mesh(bed, MeshOptions::new(call.clone(), CLIENT))?;
        let _other = other.mesh(bed, MeshOptions::new(call, STRANGER))?;
        let mut open = Vec::new();
        for pod in [&known, &plain, &other] {
            let mut asking = pod.connect(listener.local_addr()?)?;
            std::io::Write::write_all(&mut asking, b"first")?;
            let mut answering = accept(&listener)?;
            pass(&mut answering, &mut asking, b"and back")?;
            assert_eq!(pillion_testbed::stream::read_exactly(&mut answering, 5)?, b"first");
            open.push((asking, answering));
        }

        // As it is, everything stays.
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, port::ADMIN));
        let by_admin = ["--admin", &admin.to_string()];
        let (output, said) =
            preview(bed, &server, &policy::serve_in_mode("permissive"), &by_admin)?;
        assert_eq!((output.status.code(), ending(&said)), (Some(0), Vec::new()));
        assert!(said.ends_with("3 open: 3 would stay, 0 would end\n"), "{said}");

        // From the running proxy, and from its answer in a file.
        let tightened = policy::serve(&[CLIENT]);
        let (output, said) = preview(bed, &server, &tightened, &by_admin)?;
        assert_eq!(output.status.code(), Some(3));
        let (status, answer) = http_get(&server, admin, "/connections")?;
        assert_eq!(status, 200);
        let saved = bed.directory().join("connections.json");
        fs::write(&saved, answer)?;
        let by_file = ["--connections", &saved.display().to_string()];
        let (output, again) = preview(bed, &server, &tightened, &by_file)?;
        assert_eq!((output.status.code(), ending(&again)), (Some(3), ending(&said)));
        let by_input = ["--connections", "-"];
        let (output, again) = preview_of(bed, &server, &tightened, &by_input, File::open(&saved)?)?;
        assert_eq!((output.status.code(), ending(&again)), (Some(3), ending(&said)));
        let mut rules: Vec<_> = ending(&said).into_iter().map(|(_, rule)| rule).collect();
        rules.sort();
        assert_eq!(rules, ["default", "mtls"]);

        callee.load_policy(&tightened)?;
        let mut open = open.into_iter();
        let (mut asking, mut answering) = open.next().ok_or(Failure::Unexpected("none".into()))?;
        for (mut asking, mut answering) in open {
            assert_eq!(read_to_end(&mut asking)?.0, b"");
            assert_eq!(read_to_end(&mut answering)?.0, b"");
        }
        assert_eq!(ended(&callee, 2)?, ending(&said));
        pass(&mut asking, &mut answering, b"this one stays")?;
        pass(&mut answering, &mut asking, b"as was said")
    });
}
