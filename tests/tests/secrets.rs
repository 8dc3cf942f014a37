//! The private key stays where it belongs: not in memory after its time, not as text, not in a
//! core dump, not in what the proxy says.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test ends at what it did not expect"
)]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use pillion_testbed::labels::{CLIENT, SERVER, metric, port};
use pillion_testbed::workload_api::{Answer, WorkloadApi};
use pillion_testbed::{
    Context, Failure, MeshOptions, Pair, Pod, Process, Sidecar, Testbed, http_get, policy, run,
    wait_until,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;

const APP: u16 = 8080;
const LIMIT: Duration = Duration::from_secs(10);

/// A key in the forms in which it could be somewhere.
struct Key {
    /// The ends of the lines of its PEM text; their beginnings are the same in all keys.
    text: Vec<Vec<u8>>,
    /// What its DER has of it and other keys don't.
    der: Vec<u8>,
    /// The secret scalar, as DER writes it and as words of this machine.
    scalar: [Vec<u8>; 2],
}

impl Key {
    fn read(file: &Path) -> Result<Self, Failure> {
        let pem = fs::read_to_string(file).context(|| file.display().to_string())?;
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes());
        let key = key.map_err(|error| Failure::Unexpected(format!("{error}")))?;
        // ECPrivateKey (RFC 5915, 3): version 1, then an OCTET STRING of 32 bytes.
        let mark = [0x02, 0x01, 0x01, 0x04, 0x20];
        let at = find(key.secret_der(), &mark).expect("a P-256 key in PKCS#8");
        let der = key.secret_der()[at..at + mark.len() + 32].to_vec();
        let big = der[mark.len()..].to_vec();
        let little = big.iter().rev().copied().collect();
        let lines = pem.lines().filter(|line| !line.starts_with('-') && line.len() >= 24);
        let text = lines.map(|line| line.as_bytes()[line.len() - 16..].to_vec()).collect();
        Ok(Self { text, der, scalar: [big, little] })
    }

    /// In which form it is in memory, if it is in one of those that must never be there.
    fn written(&self, memory: &[Vec<u8>]) -> Option<&'static str> {
        if self.text.iter().any(|line| holds(memory, line)) {
            return Some("PEM");
        }
        holds(memory, &self.der).then_some("DER")
    }

    /// In which form a part of it is in a text, if it is in any.
    fn said(&self, text: &str) -> Option<&'static str> {
        let lower = text.to_ascii_lowercase();
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let list = |bytes: &[u8]| format!("{bytes:?}").trim_matches(['[', ']']).to_owned();
        let has_part = |form: &dyn Fn(&[u8]) -> String| {
            self.scalar.iter().flat_map(|scalar| scalar.chunks(8)).any(|part| {
                let part = form(part);
                text.contains(&part) || lower.contains(&part)
            })
        };
        let base64 = |line: &Vec<u8>| text.contains(&*String::from_utf8_lossy(line));
        let forms = [
            (self.text.iter().any(base64), "base64"),
            (has_part(&hex), "hex"),
            (has_part(&list), "a list of bytes"),
            (has_part(&|part| part.escape_ascii().to_string()), "escaped bytes"),
        ];
        forms.into_iter().find_map(|(has, form)| has.then_some(form))
    }

    /// How often its scalar is in memory.
    fn copies(&self, memory: &[Vec<u8>]) -> usize {
        self.scalar.iter().map(|scalar| count(memory, scalar)).sum()
    }

    /// Whether its scalar is in memory.
    fn alive(&self, memory: &[Vec<u8>]) -> bool {
        self.copies(memory) > 0
    }
}

fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len()).position(|window| window == needle)
}

fn count(memory: &[Vec<u8>], needle: &[u8]) -> usize {
    let first = needle.first().copied().unwrap_or_default();
    let in_piece = |piece: &Vec<u8>| {
        let (mut rest, mut found) = (piece.as_slice(), 0);
        while let Some(at) = rest.iter().position(|byte| *byte == first) {
            found += usize::from(rest[at..].starts_with(needle));
            rest = &rest[at + 1..];
        }
        found
    };
    memory.iter().map(in_piece).sum()
}

fn holds(memory: &[Vec<u8>], needle: &[u8]) -> bool {
    count(memory, needle) > 0
}

fn key_of(bed: &Testbed, pod: &Pod, generation: u32) -> PathBuf {
    bed.directory().join(format!("{}-issued.{generation}", pod.name())).join("tls.key")
}

#[test]
fn a_key_is_in_memory_once_and_only_in_its_time() {
    run("key-in-memory", |bed| {
        let mut pair = Pair::new(bed)?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        for generation in 0..3 {
            pair.exchange(&listener)?;
            let now = Key::read(&key_of(bed, &pair.server, generation))?;
            let memory = pair.callee.process().memory()?;
            assert!(holds(&memory, b"testbed"), "the scan finds what is there: the policy's name");
            assert_eq!(now.copies(&memory), 1, "and the key that is in use, as the library has it");
            assert_eq!(now.written(&memory), None, "generation {generation}");
            let loads = pair.callee.metric(metric::CERTIFICATE_RELOADS, &[("result", "ok")])?;
            pair.callee.issue(bed)?;
            pair.callee.wait_metric(
                metric::CERTIFICATE_RELOADS,
                &[("result", "ok")],
                loads + 1.0,
            )?;
            // The last tunnel with the old certificate goes in a moment.
            wait_until("the old key to be gone", LIMIT, || {
                Ok((!now.alive(&pair.callee.process().memory()?)).then_some(()))
            })?;
            let memory = pair.callee.process().memory()?;
            assert_eq!(now.written(&memory), None, "generation {generation}, after it");
            let next = Key::read(&key_of(bed, &pair.server, generation + 1))?;
            assert!(next.alive(&memory), "the new one is");
        }
        Ok(())
    });
}

/// Key and chain in one file take another way.
#[test]
fn a_key_of_a_bundle_file_is_in_memory_once_too() {
    run("bundle-in-memory", |bed| {
        let server = bed.pod("srv")?;
        let files = bed.issue(&bed.ca()?, SERVER, "both")?;
        let (key, chain) = (fs::read(files.join("tls.key"))?, fs::read(files.join("tls.crt"))?);
        let file = bed.directory().join("credentials.pem");
        fs::write(&file, [key, chain].concat())?;
        let options = MeshOptions::new(policy::serve(&[CLIENT]), SERVER).bundle_file(&file);
        let mut callee = server.mesh(bed, options)?;
        let key = Key::read(&files.join("tls.key"))?;
        let memory = callee.process().memory()?;
        assert_eq!(key.copies(&memory), 1);
        assert_eq!(key.written(&memory), None);
        Ok(())
    });
}

fn ended(process: &mut Process) -> Result<std::process::ExitStatus, Failure> {
    process.signal(Signal::SIGABRT)?;
    wait_until("the end", LIMIT, || process.ended())
}

#[test]
fn no_core_is_dumped() {
    run("core", |bed| {
        let server = bed.pod("srv")?;
        let options = MeshOptions::new(policy::serve(&[CLIENT]), SERVER).core_dumps();
        let mut callee = server.mesh(bed, options)?;
        let limits = fs::read_to_string(callee.process().proc("limits"))?;
        let core = limits.lines().find(|line| line.starts_with("Max core file size"));
        let numbers: Vec<_> = core.unwrap_or_default().split_whitespace().skip(4).take(2).collect();
        assert_eq!(numbers, ["0", "0"], "{limits}");
        // What cannot be dumped belongs to root in /proc, whoever it runs as (proc(5)).
        let status = fs::read_to_string(callee.process().proc("status"))?;
        assert!(status.contains("Uid:\t1337\t1337\t1337\t1337"), "{status}");
        assert_eq!(fs::metadata(callee.process().proc("environ"))?.uid(), 0);
        let status = ended(callee.process())?;
        assert_eq!(status.signal(), Some(Signal::SIGABRT as i32));
        assert!(!status.core_dumped());

        // Whether this machine would have dumped another depends on its core_pattern.
        let mut other = server.daemon("prlimit");
        other.args(["--core=unlimited:unlimited", "sleep", "1000"]).current_dir(bed.directory());
        let mut other = server.spawn("sleep", &mut other)?;
        wait_until("sleep", LIMIT, || {
            Ok(fs::read_to_string(other.proc("comm"))?.starts_with("sleep").then_some(()))
        })?;
        println!("another process dumps: {}", ended(&mut other)?.core_dumped());
        Ok(())
    });
}

/// All that a sidecar says to whoever asks and to its log.
fn said(pod: &Pod, sidecar: &mut Sidecar) -> Result<String, Failure> {
    let mut all = sidecar.process().stdout()? + &sidecar.process().stderr()?;
    for path in ["/config", "/connections", "/certs", "/policy", "/logging"] {
        all += &http_get(pod, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port::ADMIN), path)?.1;
    }
    for (port, path) in [
        (port::METRICS, "/metrics"),
        (port::HEALTH, "/healthz/ready"),
        (port::HEALTH, "/healthz/startup"),
    ] {
        all += &http_get(pod, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port), path)?.1;
    }
    Ok(all)
}

#[test]
fn nothing_that_the_proxy_says_has_a_part_of_the_key() {
    run("key-in-words", |bed| {
        let mut pair = Pair::with_env(bed, &[("PILLION_LOG", "trace")])?;
        let listener = pair.listen(pair.server.v4(), APP)?;
        pair.exchange(&listener)?;
        let key = Key::read(&key_of(bed, &pair.server, 0))?;
        // A key that does not fit is an error that is written down.
        let other = bed.issue(&bed.ca()?, SERVER, "other")?;
        let tls = pair.server.path("tls");
        fs::copy(other.join("tls.key"), tls.join("..data/tls.key"))?;
        pair.callee.wait_message("certificates can't be used")?;
        let other = Key::read(&other.join("tls.key"))?;
        fs::write(tls.join("..data/tls.key"), "-----BEGIN PRIVATE KEY-----\nsecret\n")?;
        wait_until("the second error", LIMIT, || {
            let said = pair.callee.messages("certificates can't be used")?;
            Ok((said.len() >= 2).then_some(()))
        })?;

        let all = said(&pair.server, &mut pair.callee)?;
        for there in ["trace", "testbed", SERVER, "can't be used"] {
            assert!(all.contains(there), "{there}");
        }
        for key in [key, other] {
            assert_eq!(key.said(&all), None);
        }
        Ok(())
    });
}

/// An agent's answer goes through libraries that have a log of their own.
#[test]
fn nothing_that_the_proxy_says_has_a_part_of_an_agents_key() {
    run("agents-key-in-words", |bed| {
        let server = bed.pod("srv")?;
        let files = bed.issue(&bed.ca()?, SERVER, "agents")?;
        let socket = bed.directory().join("agent.sock");
        let agent = WorkloadApi::start(&socket)?;
        agent.say(Answer::of(SERVER, &files)?);
        let options = MeshOptions::new(policy::serve(&[CLIENT]), SERVER)
            .without_files()
            .env("PILLION_LOG", "trace")
            .env("PILLION_IDENTITY_SOURCE", "workload-api")
            .env("SPIFFE_ENDPOINT_SOCKET", &format!("unix://{}", socket.display()));
        let mut callee = server.mesh(bed, options)?;
        // Another's key, which does not fit.
        let other = bed.issue(&bed.ca()?, SERVER, "others")?;
        for file in ["tls.crt", "ca.crt"] {
            fs::copy(files.join(file), other.join(file))?;
        }
        agent.say(Answer::of(SERVER, &other)?);
        callee.wait_message("certificates can't be used")?;

        let all = said(&server, &mut callee)?;
        for there in ["h2::", "testbed", SERVER, "can't be used"] {
            assert!(all.contains(there), "{there}");
        }
        for directory in [files, other] {
            let key = Key::read(&directory.join("tls.key"))?;
            assert_eq!(key.said(&all), None);
            let bytes = format!("{all} Frame({:?})", key.scalar[0]);
            assert_eq!(key.said(&bytes), Some("a list of bytes"), "the search finds what is there");
        }
        Ok(())
    });
}
