//! HAProxy: TCP mode. A server at 0.0.0.0:0 is one at the address and port that the client asked
//! for, which HAProxy takes from `SO_ORIGINAL_DST` on a redirected connection.

use std::path::Path;

use pillion_testbed::Process;
use pillion_testbed::labels::port;

use super::peer::{Both, Certificates, Side};
use crate::error::{Error, write};

/// Connections at most: two descriptors each, and it does not start where the limit of open files
/// is below that. More than any load opens.
const MOST: u32 = 9_000;

/// Starts HAProxy in both pods.
pub(super) fn start(both: &Both<'_>, program: &Path) -> Result<[Process; 2], Error> {
    both.start(|side, pod| {
        let config = pod.path("haproxy.cfg");
        write(&config, &configuration(side, &both.certificates(side, pod)?))?;
        let mut command = pod.daemon_as(super::PROXY_USER, program);
        command.arg("-db").arg("-q").arg("-f").arg(&config);
        Ok(command)
    })
}

fn configuration(side: Side, certificates: &Certificates) -> String {
    let tls = format!(
        " ssl crt {} ca-file {} verify required force-tlsv13",
        certificates.both.display(),
        certificates.ca.display()
    );
    let (outbound_tls, inbound_tls) = match side {
        Side::Client => (tls.as_str(), ""),
        Side::Server => ("", tls.as_str()),
    };
    format!(
        "global\n\
         \x20 nbthread 2\n\
         \x20 maxconn {MOST}\n\
         defaults\n\
         \x20 mode tcp\n\
         \x20 maxconn {MOST}\n\
         \x20 timeout connect 5s\n\
         \x20 timeout client 1h\n\
         \x20 timeout server 1h\n\
         listen outbound\n\
         \x20 bind 0.0.0.0:{}\n\
         \x20 server original 0.0.0.0:0{outbound_tls}\n\
         listen inbound\n\
         \x20 bind 0.0.0.0:{}{inbound_tls}\n\
         \x20 server original 0.0.0.0:0 source 127.0.0.6\n",
        port::OUTBOUND,
        port::INBOUND
    )
}
