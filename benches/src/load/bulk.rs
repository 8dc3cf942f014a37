//! Bulk transfers, up and down.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::worker::Task;
use crate::wire::BULK_CHUNK;

/// Writes to the sink; at the end the sink must have got every byte.
pub(super) async fn up(mut stream: TcpStream, task: Task) {
    if let Err(error) = write(&mut stream, &task).await {
        task.failed("bulk up", &error);
    }
}

async fn write(stream: &mut TcpStream, task: &Task) -> io::Result<()> {
    let chunk = vec![0x5a; BULK_CHUNK];
    let mut sent = 0_u64;
    while task.running() {
        let written = stream.write(&chunk).await?;
        task.done(written);
        sent = sent.saturating_add(written as u64);
    }
    stream.shutdown().await?;
    let came = stream.read_u64().await?;
    if came == sent {
        return Ok(());
    }
    Err(io::Error::other(format!("{sent} bytes were sent, {came} came")))
}

/// Reads from the source, and tells it to end when the load is over.
pub(super) async fn down(mut stream: TcpStream, task: Task) {
    if let Err(error) = read(&mut stream, &task).await {
        task.failed("bulk down", &error);
    }
}

async fn read(stream: &mut TcpStream, task: &Task) -> io::Result<()> {
    let mut buffer = vec![0; BULK_CHUNK];
    let mut told = false;
    loop {
        match stream.read(&mut buffer).await? {
            0 if told => return Ok(()),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => task.done(read),
        }
        if !told && !task.running() {
            stream.shutdown().await?;
            told = true;
        }
    }
}
