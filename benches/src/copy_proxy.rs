//! The plainest transparent proxy: tokio's `copy_bidirectional` on its default runtime. What
//! passthrough costs is compared with this.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::error::{Context, Error};

/// The source that the redirect rules let pass to the application.
const TO_APP: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);

/// Carries what is redirected to the outbound and the inbound port, for as long as the process
/// lives.
///
/// # Errors
/// A port is taken.
pub(crate) fn run(outbound: u16, inbound: u16) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("a runtime")?;
    runtime.block_on(async {
        let out = listen(outbound).context(format!("listening on {outbound}"))?;
        let inward = listen(inbound).context(format!("listening on {inbound}"))?;
        let serving = tokio::spawn(accept(out, None));
        accept(inward, Some(TO_APP)).await.context("accepting")?;
        serving.abort();
        Ok(())
    })
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind((Ipv4Addr::UNSPECIFIED, port).into())?;
    socket.listen(16_384)
}

async fn accept(listener: TcpListener, source: Option<Ipv4Addr>) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(carry(stream, source));
    }
}

async fn carry(mut from: TcpStream, source: Option<Ipv4Addr>) -> io::Result<()> {
    let to = getsockopt(&from, sockopt::OriginalDst)?;
    let to = SocketAddrV4::new(u32::from_be(to.sin_addr.s_addr).into(), u16::from_be(to.sin_port));
    let socket = TcpSocket::new_v4()?;
    if let Some(source) = source {
        socket.bind(SocketAddr::new(source.into(), 0))?;
    }
    let mut to = socket.connect(to.into()).await?;
    from.set_nodelay(true)?;
    to.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut from, &mut to).await.map(drop)
}
