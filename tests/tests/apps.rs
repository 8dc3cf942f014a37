//! Real applications, once directly and once through two sidecars, over IPv4 and IPv6: what they
//! see must be the same.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pillion_testbed::stream::{End, read_to_end};
use pillion_testbed::{Context, Failure, Pair, Pod, Process, accept, complete, run, wait_until};

/// One run of a workload.
struct Call<'a> {
    client: &'a Pod,
    server: &'a Pod,
    address: IpAddr,
    /// Unique to this run; for names of files.
    name: String,
}

impl Call<'_> {
    fn host(&self) -> String {
        self.address.to_string()
    }

    fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, port)
    }

    fn run(&self, program: &str, words: &[&str]) -> Result<String, Failure> {
        complete(self.client.command(program).args(words))
    }

    fn shell(&self, line: &str) -> Result<String, Failure> {
        complete(&mut self.client.shell(line))
    }
}

/// Runs `work` on every address, without and then with sidecars, and compares what it returns.
fn directly_and_meshed(
    name: &str,
    start: impl FnOnce(&Pod) -> Result<Vec<Process>, Failure>,
    work: impl Fn(&Call<'_>) -> Result<String, Failure>,
) {
    run(name, |bed| {
        let (server, client) = (bed.pod("srv")?, bed.pod("cli")?);
        let _app = start(&server)?;
        let on_every_address = |client: &Pod, server: &Pod, way: &str| {
            let addresses = server.addresses();
            let one = |(number, address): (usize, &IpAddr)| {
                let name = format!("{way}-{number}");
                let result = work(&Call { client, server, address: *address, name })?;
                println!("{way} to {address}: {}", result.lines().next_back().unwrap_or_default());
                Ok(result)
            };
            addresses.iter().enumerate().map(one).collect::<Result<Vec<_>, Failure>>()
        };
        let direct = on_every_address(&client, &server, "direct")?;
        let pair = Pair::mesh(bed, client, server, &[])?;
        let meshed = on_every_address(&pair.client, &pair.server, "meshed")?;
        assert_eq!(meshed, direct, "through two sidecars {name} sees something else");
        pair.check_meshed()
    });
}

const HTTP: u16 = 8080;

fn nginx(pod: &Pod) -> Result<Vec<Process>, Failure> {
    let root = pod.path("nginx");
    fs::create_dir_all(root.join("up"))?;
    fs::write(root.join("small.txt"), "small\n")?;
    let at = root.display();
    // One listener a family: `[::]` alone would need IPv6, and IPv6 may be off.
    let v6 = if pod.addresses().len() > 1 { format!("listen [::]:{HTTP};") } else { String::new() };
    let scratch: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("{kind}_temp_path {at}/{kind};\n"))
        .collect();
    let config = format!(
        "user root;\nworker_processes 1;\ndaemon off;\npid {at}/pid;\nerror_log {at}/error.log;\n\
         events {{ worker_connections 512; }}\nhttp {{\n{scratch}sendfile on;\naccess_log off;\n\
         server {{ listen {HTTP}; {v6} root {at}; client_max_body_size 0;\n\
         location /up/ {{ dav_methods PUT; }} }}\n}}\n"
    );
    let path = root.join("nginx.conf");
    fs::write(&path, config)?;
    let mut command = pod.daemon("nginx");
    command.arg("-e").arg(root.join("error.log")).arg("-c").arg(path);
    let process = pod.spawn("nginx", &mut command)?;
    pod.wait_for_port(SocketAddr::new(pod.v4(), HTTP))?;
    Ok(vec![process])
}

#[test]
fn http_keep_alive() {
    directly_and_meshed("http-keep-alive", nginx, |call| {
        let urls = format!("http://{}/small.txt?n=[1-50]", call.at(HTTP));
        let answers = call.run("curl", &["-sSf", "-w", "%{http_code} %{num_connects}\n", &urls])?;
        assert_eq!(answers.matches("small\n").count(), 50);
        assert_eq!(answers.matches("200 1\n").count(), 1, "one connection carries all: {answers}");
        Ok(answers)
    });
}

/// A file that does not compress and is the same in every run: an AES-CTR key stream.
fn bulk_file(path: &Path, bytes: u64) -> Result<(), Failure> {
    let line = format!(
        "set -o pipefail; head -c {bytes} /dev/zero | openssl enc -aes-128-ctr \
         -K 000102030405060708090a0b0c0d0e0f -iv 00000000000000000000000000000000 > {}",
        path.display()
    );
    complete(Command::new("bash").args(["-c", &line])).map(drop)
}

fn sha256(path: &Path) -> Result<String, Failure> {
    let line = complete(Command::new("sha256sum").arg(path))?;
    Ok(line.split_whitespace().next().unwrap_or_default().to_owned())
}

#[test]
fn bulk_down_and_up() {
    let start = |pod: &Pod| {
        let app = nginx(pod)?;
        bulk_file(&pod.path("nginx").join("bulk"), pod.settings().bulk_bytes())?;
        Ok(app)
    };
    directly_and_meshed("bulk", start, |call| {
        let file = call.server.path("nginx").join("bulk");
        let url = format!("http://{}", call.at(HTTP));
        let down = call.shell(&format!("curl -sSf {url}/bulk | sha256sum"))?;
        let upload = format!("curl -sSf -T {} {url}/up/{}", file.display(), call.name);
        call.shell(&upload)?;
        let uploaded = call.server.path("nginx").join("up").join(&call.name);
        let up = sha256(&uploaded)?;
        fs::remove_file(uploaded)?;
        assert!(down.starts_with(&up), "down {down}, up {up}");
        Ok(down)
    });
}

#[test]
fn http_1_0_body_ended_by_eof() {
    const BODY: usize = 3_000_001;
    directly_and_meshed(
        "http-1.0",
        |_| Ok(Vec::new()),
        |call| {
            let listener = call.server.listen(call.at(8081))?;
            let answer = std::thread::scope(|scope| {
                let serving = scope.spawn(|| -> Result<(), Failure> {
                    let mut stream = accept(&listener)?;
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n") {
                        let mut byte = [0];
                        stream.read_exact(&mut byte).context(|| "the request")?;
                        request.extend(byte);
                    }
                    stream.write_all(b"HTTP/1.0 200 OK\r\nServer: old\r\n\r\n")?;
                    stream.write_all(&vec![b'x'; BODY])?;
                    Ok(())
                });
                let line = format!("curl -sSf --http1.0 http://{}/ | wc -c", call.at(8081));
                let answer = call.shell(&line);
                let served =
                    serving.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                served.and(answer)
            })?;
            assert_eq!(answer.trim(), BODY.to_string());
            Ok(answer)
        },
    );
}

#[test]
fn http2_over_plaintext() {
    let start = |pod: &Pod| {
        let root = pod.path("h2");
        fs::create_dir_all(&root)?;
        fs::write(root.join("small.txt"), "small\n")?;
        let mut command = pod.daemon("nghttpd");
        command.args(["--no-tls", "8082", "-d"]).arg(root);
        let process = pod.spawn("nghttpd", &mut command)?;
        pod.wait_for_port(SocketAddr::new(pod.v4(), 8082))?;
        Ok(vec![process])
    };
    directly_and_meshed("h2c", start, |call| {
        let url = format!("http://{}/small.txt", call.at(8082));
        let report = call.run("h2load", &["-n", "5000", "-c", "8", "-m", "20", &url])?;
        let line = |name: &str| {
            report.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned()
        };
        assert!(line("status codes:").contains("5000 2xx"), "{report}");
        Ok([line("requests:"), line("status codes:")].join("\n"))
    });
}

#[test]
fn half_close_by_the_client() {
    directly_and_meshed(
        "half-close-client",
        |_| Ok(Vec::new()),
        |call| {
            let listener = call.server.listen(call.at(9001))?;
            let reply = std::thread::scope(|scope| {
                let serving = scope.spawn(|| -> Result<(), Failure> {
                    let mut stream = accept(&listener)?;
                    let (question, end) = read_to_end(&mut stream)?;
                    assert_eq!((question.as_slice(), end), (b"question\n".as_slice(), End::Fin));
                    // Only now: the other direction is closed, and this one still flows.
                    stream.write_all(b"answer after EOF\n")?;
                    Ok(())
                });
                let reply = call.shell(&format!("echo question | nc -N {} 9001", call.host()));
                let served =
                    serving.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                served.and(reply)
            })?;
            assert_eq!(reply, "answer after EOF\n");
            Ok(reply)
        },
    );
}

#[test]
fn half_close_by_the_server() {
    directly_and_meshed(
        "half-close-server",
        |_| Ok(Vec::new()),
        |call| {
            let listener = call.server.listen(call.at(9002))?;
            let mut client = call.client.connect(call.at(9002))?;
            // The server speaks first: nothing on the way may wait for the client.
            let mut server = accept(&listener)?;
            server.write_all(b"bye").and_then(|()| server.shutdown(Shutdown::Write))?;
            let (greeting, end) = read_to_end(&mut client)?;
            assert_eq!((greeting.as_slice(), end), (b"bye".as_slice(), End::Fin));
            client.write_all(b"still here").and_then(|()| client.shutdown(Shutdown::Write))?;
            let (rest, end) = read_to_end(&mut server)?;
            assert_eq!((rest.as_slice(), end), (b"still here".as_slice(), End::Fin));
            Ok(String::from_utf8_lossy(&rest).into_owned())
        },
    );
}

/// Runs a program of the newest PostgreSQL that is installed, as its user.
fn postgres(pod: &Pod, program: &str) -> Command {
    let newest = format!("exec \"$(ls -d /usr/lib/postgresql/*/bin/{program} | tail -1)\" \"$@\"");
    let mut command = pod.daemon_as("postgres", "bash");
    command.args(["-c", &newest, program]);
    command
}

fn start_postgres(pod: &Pod) -> Result<Vec<Process>, Failure> {
    let home = pod.path("pg");
    fs::create_dir_all(&home)?;
    complete(Command::new("chown").arg("postgres:postgres").arg(&home))?;
    let data = home.join("data");
    let mut initdb = postgres(pod, "initdb");
    initdb.arg("-D").arg(&data).args(["-A", "trust", "-U", "postgres", "--no-sync"]);
    complete(initdb.args(["-E", "UTF8", "--locale=C.UTF-8"]))?;
    let access = data.join("pg_hba.conf");
    let all = "host all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n";
    fs::write(&access, [fs::read_to_string(&access)?.as_str(), all].concat())?;
    let mut server = postgres(pod, "postgres");
    server.arg("-D").arg(&data).args(["-c", "listen_addresses=*", "-c", "port=5432"]);
    server.args(["-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "max_wal_size=4GB"]);
    let process = pod.spawn("postgres", &mut server)?;
    let ready = "a PostgreSQL that accepts connections";
    let host = pod.v4().to_string();
    wait_until(ready, Duration::from_secs(30), || {
        let mut ask = pod.command("pg_isready");
        Ok(complete(ask.args(["-q", "-h", &host])).is_ok().then_some(()))
    })?;
    // About 100 MB as text.
    let rows = "create table source as select i, md5(i::text) || md5((i+1)::text) || \
                md5((i+2)::text) as v from generate_series(1, 1000000) i";
    complete(pod.command("psql").args(["-h", &host, "-U", "postgres", "-qAt", "-c", rows]))?;
    Ok(vec![process])
}

#[test]
fn postgresql() {
    directly_and_meshed("postgresql", start_postgres, |call| {
        let host = call.host();
        let login = ["-h", &host, "-U", "postgres"];
        call.run("pgbench", &[&login[..], &["-i", "-s", "1", "-q", "postgres"]].concat())?;
        let bench = [&login[..], &["-c", "4", "-t", "100", "postgres"]].concat();
        let report = call.run("pgbench", &bench)?;
        let done = "number of transactions actually processed: 400/400";
        assert!(report.contains(done), "{report}");
        let file = call.client.path(&format!("{}.tsv", call.name));
        let out = format!("\\copy source to '{}'", file.display());
        let back = format!("\\copy target from '{}'", file.display());
        let psql = [&login[..], &["-qAt", "-v", "ON_ERROR_STOP=1"]].concat();
        let script = [
            ["-c", "drop table if exists target"],
            ["-c", "create table target (like source)"],
            ["-c", &out],
            ["-c", &back],
            ["-c", "select count(*), md5(string_agg(md5(i || v), '' order by i)) from target"],
        ];
        let sums = call.run("psql", &[psql, script.concat()].concat())?;
        let file_sum = sha256(&file)?;
        fs::remove_file(file)?;
        Ok(format!("{done}\n{sums}{file_sum}"))
    });
}

#[test]
fn redis() {
    let start = |pod: &Pod| {
        let mut command = pod.daemon("redis-server");
        command.args(["--port", "6379", "--bind", "0.0.0.0", "-::", "--protected-mode", "no"]);
        command.args(["--save", "", "--appendonly", "no", "--dir", "/"]);
        let process = pod.spawn("redis", &mut command)?;
        pod.wait_for_port(SocketAddr::new(pod.v4(), 6379))?;
        Ok(vec![process])
    };
    directly_and_meshed("redis", start, |call| {
        let host = call.host();
        let ask = |words: &[&str]| call.run("redis-cli", &[&["-h", &host], words].concat());
        ask(&["flushall"])?;
        let commands: String =
            (0..100_000).map(|i| format!("SET key:{i} value-{}\r\n", i * 7)).collect();
        let file = call.client.path("commands");
        fs::write(&file, commands)?;
        let pipe = format!("redis-cli -h {host} --pipe < {}", file.display());
        let report = call.shell(&pipe)?;
        assert!(report.contains("errors: 0, replies: 100000"), "{report}");

        let mut subscriber = call.client.command("redis-cli");
        subscriber.args(["-h", &host, "subscribe", "news"]);
        let subscriber = call.client.spawn("subscriber", &mut subscriber)?;
        let limit = Duration::from_secs(10);
        wait_until("a subscriber", limit, || {
            Ok(ask(&["pubsub", "numsub", "news"])?.contains('1').then_some(()))
        })?;
        assert_eq!(ask(&["publish", "news", "extra"])?.trim(), "1", "one has heard it");
        wait_until("the news", limit, || {
            Ok(subscriber.stdout()?.contains("message\nnews\nextra").then_some(()))
        })?;
        Ok(format!("{}{}", ask(&["dbsize"])?, ask(&["get", "key:99999"])?))
    });
}

/// The server speaks first; nothing may wait for the client's first byte.
#[test]
fn mariadb() {
    let start = |pod: &Pod| {
        let home = pod.path("mariadb");
        fs::create_dir_all(&home)?;
        let data = format!("--datadir={}", home.join("data").display());
        let mut install = pod.command("mariadb-install-db");
        install.args(["--no-defaults", "--user=root", &data, "--skip-test-db"]);
        complete(install.arg("--auth-root-authentication-method=normal"))?;
        let users = home.join("users.sql");
        // One statement a line.
        fs::write(
            &users,
            "CREATE USER 'app'@'%' IDENTIFIED BY 'app';\nGRANT ALL ON *.* TO 'app'@'%';\n",
        )?;
        let mut server = pod.daemon("mariadbd");
        server.args(["--no-defaults", "--user=root", &data, "--port=3306", "--bind-address=*"]);
        server.arg(format!("--socket={}", home.join("socket").display()));
        server.arg(format!("--pid-file={}", home.join("pid").display()));
        server.arg(format!("--init-file={}", users.display())).arg("--skip-name-resolve");
        let process = pod.spawn("mariadbd", &mut server)?;
        pod.wait_for_port(SocketAddr::new(pod.v4(), 3306))?;
        Ok(vec![process])
    };
    directly_and_meshed("mariadb", start, |call| {
        let host = call.host();
        let ask = |statement: &str| {
            let login = ["--no-defaults", "-h", &host, "-uapp", "-papp", "-N", "-e", statement];
            call.run("mariadb", &login)
        };
        let sum = ask("drop database if exists t; create database t; use t; \
             create table x (i int primary key, v varchar(64)); \
             insert into x select seq, md5(seq) from seq_1_to_100000; \
             select count(*), sum(crc32(v)) from x")?;
        let rows = ask("select * from t.x order by i")?;
        assert_eq!(rows.lines().count(), 100_000);
        Ok(format!("{rows}{sum}"))
    });
}

/// The words that `ssh` and `scp` share: no file of the user's is read or written.
fn ssh_options(key: &str) -> [&str; 10] {
    let known = "UserKnownHostsFile=/dev/null";
    ["-F", "none", "-i", key, "-o", "StrictHostKeyChecking=no", "-o", known, "-o", "LogLevel=ERROR"]
}

#[test]
fn ssh() {
    const BYTES: u64 = 64 << 20;
    let start = |pod: &Pod| {
        let home = pod.path("ssh");
        fs::create_dir_all(&home)?;
        // sshd's own directory for its unprivileged half.
        fs::create_dir_all("/run/sshd")?;
        for key in ["host", "user"] {
            let path = home.join(key);
            complete(
                Command::new("ssh-keygen").args(["-qt", "ed25519", "-N", "", "-f"]).arg(path),
            )?;
        }
        fs::copy(home.join("user.pub"), home.join("authorized_keys"))?;
        bulk_file(&home.join("file"), BYTES)?;
        let at = home.display();
        let config = format!(
            "Port 2222\nHostKey {at}/host\nAuthorizedKeysFile {at}/authorized_keys\nPidFile none\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\n\
             PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n"
        );
        fs::write(home.join("config"), config)?;
        let mut command = pod.daemon("/usr/sbin/sshd");
        let process =
            pod.spawn("sshd", command.args(["-D", "-e", "-f"]).arg(home.join("config")))?;
        pod.wait_for_port(SocketAddr::new(pod.v4(), 2222))?;
        Ok(vec![process])
    };
    directly_and_meshed("ssh", start, |call| {
        let home = call.server.path("ssh");
        let key = home.join("user").display().to_string();
        let (file, copy) = (home.join("file"), home.join(&call.name));
        let from = file.display().to_string();
        // `[address]` also where it is IPv4: scp takes both.
        let to = format!("root@[{}]:{}", call.address, copy.display());
        let options = ssh_options(&key);
        call.run("scp", &[&options[..], &["-P", "2222", &from, &to]].concat())?;
        assert_eq!(sha256(&copy)?, sha256(&file)?);
        fs::remove_file(copy)?;
        let login = format!("root@{}", call.address);
        call.run("ssh", &[&options[..], &["-p", "2222", &login, "echo from the server"]].concat())
    });
}
