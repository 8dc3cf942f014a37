//! What a capture shows: a small reader of pcap files, and of TCP in them.
//!
//! The file format is the classic one of libpcap (draft-ietf-opsawg-pcap): a header of 24 bytes,
//! then records of 16 bytes and a frame. Only Ethernet, IPv4 and IPv6 without extension headers,
//! and TCP are read; the testbed's pods speak nothing else that matters here.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use crate::Failure;

/// One direction of one TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// Who sends.
    pub from: SocketAddr,
    /// Who receives.
    pub to: SocketAddr,
}

/// The TCP payload of a capture, put together flow by flow. Segments of a capture may be cut
/// anywhere, also inside a TLS record, so that only a flow as a whole tells what it carries.
#[derive(Debug, Default)]
pub struct Wire {
    flows: Vec<(Flow, Vec<u8>)>,
}

impl Wire {
    /// Reads a whole file.
    ///
    /// # Errors
    /// It is no little-endian pcap of Ethernet frames, or a flow has a hole: the capture lost
    /// packets, and would prove nothing.
    pub fn parse(file: &[u8]) -> Result<Self, Failure> {
        let mut segments: BTreeMap<Flow, Vec<Segment<'_>>> = BTreeMap::new();
        for frame in frames(file)? {
            if let Some((flow, segment)) = segment(frame) {
                segments.entry(flow).or_default().push(segment);
            }
        }
        let mut flows = Vec::new();
        for (flow, segments) in segments {
            // A port that was used again carries a second connection: both are kept.
            flows.extend(connections(&segments)?.into_iter().map(|bytes| (flow, bytes)));
        }
        Ok(Self { flows })
    }

    /// Whether any flow carries `needle`.
    #[must_use]
    pub fn contains(&self, needle: &[u8]) -> bool {
        self.flows.iter().any(|(_, bytes)| bytes.windows(needle.len()).any(|part| part == needle))
    }

    /// The flows to or from a port, that carry payload.
    pub fn flows(&self, port: u16) -> impl Iterator<Item = (&Flow, &[u8])> {
        self.flows
            .iter()
            .filter(move |(flow, bytes)| {
                !bytes.is_empty() && (flow.to.port() == port || flow.from.port() == port)
            })
            .map(|(flow, bytes)| (flow, bytes.as_slice()))
    }

    /// How many flows of a port are TLS from their first byte to their last, and how many not.
    #[must_use]
    pub fn summary(&self, port: u16) -> (usize, usize) {
        let tls = self.flows(port).filter(|(_, bytes)| is_tls(bytes)).count();
        (tls, self.flows(port).count() - tls)
    }
}

/// Whether bytes are TLS records one after another (RFC 8446, 5.1): types 20 to 23, version 3.x.
/// The last record may be cut off.
fn is_tls(mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match bytes {
            [0x14..=0x17, 3, _, high, low, rest @ ..] => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                bytes = rest.get(length..).unwrap_or_default();
            }
            [0x14..=0x17] | [0x14..=0x17, 3] | [0x14..=0x17, 3, _] | [0x14..=0x17, 3, _, _] => {
                return true;
            }
            _ => return false,
        }
    }
    true
}

/// The frames of a file.
fn frames(file: &[u8]) -> Result<Vec<&[u8]>, Failure> {
    let bad = || Failure::Unexpected("not a little-endian pcap file of Ethernet".to_owned());
    let (header, mut rest) = file.split_at_checked(24).ok_or_else(bad)?;
    if u32_le(header, 0) != Some(0xa1b2_c3d4) || u32_le(header, 20) != Some(1) {
        return Err(bad());
    }
    let mut frames = Vec::new();
    while let Some((record, after)) = rest.split_at_checked(16) {
        let length = u32_le(record, 8).and_then(|n| usize::try_from(n).ok()).ok_or_else(bad)?;
        // A record that is still being written ends the file.
        let Some((frame, after)) = after.split_at_checked(length) else { break };
        frames.push(frame);
        rest = after;
    }
    Ok(frames)
}

#[derive(Debug, Clone, Copy)]
struct Segment<'a> {
    sequence: u32,
    syn: bool,
    payload: &'a [u8],
}

fn segment(frame: &[u8]) -> Option<(Flow, Segment<'_>)> {
    let packet = frame.get(14..)?;
    let (source, destination, tcp) = match u16_be(frame, 12)? {
        0x0800 => ipv4(packet)?,
        0x86dd => ipv6(packet)?,
        _ => return None,
    };
    let header = usize::from(tcp.get(12)? >> 4) * 4;
    let flow = Flow {
        from: SocketAddr::new(source, u16_be(tcp, 0)?),
        to: SocketAddr::new(destination, u16_be(tcp, 2)?),
    };
    let syn = tcp.get(13)? & 0x02 != 0;
    Some((flow, Segment { sequence: u32_be(tcp, 4)?, syn, payload: tcp.get(header..)? }))
}

const TCP: u8 = 6;

fn ipv4(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let total = usize::from(u16_be(packet, 2)?);
    if *packet.get(9)? != TCP {
        return None;
    }
    // Segments larger than 64 KiB - 1 (BIG TCP) would say 0; short frames are padded.
    let payload = if total == 0 { packet.get(header..)? } else { packet.get(header..total)? };
    Some((address::<4>(packet, 12)?, address::<4>(packet, 16)?, payload))
}

fn ipv6(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let length = usize::from(u16_be(packet, 4)?);
    if *packet.get(6)? != TCP {
        return None;
    }
    let payload = if length == 0 { packet.get(40..)? } else { packet.get(40..40 + length)? };
    Some((address::<16>(packet, 8)?, address::<16>(packet, 24)?, payload))
}

fn address<const N: usize>(packet: &[u8], at: usize) -> Option<IpAddr>
where
    IpAddr: From<[u8; N]>,
{
    let bytes: [u8; N] = packet.get(at..at + N)?.try_into().ok()?;
    Some(bytes.into())
}

/// The payloads of the connections of one flow, each from its SYN on.
fn connections(segments: &[Segment<'_>]) -> Result<Vec<Vec<u8>>, Failure> {
    let mut connections = Vec::new();
    let mut current: Vec<Segment<'_>> = Vec::new();
    let mut first = None;
    for segment in segments {
        if segment.syn && first != Some(segment.sequence) {
            if let Some(first) = first.replace(segment.sequence) {
                connections.push(assemble(first, &mut current)?);
            }
        } else {
            current.push(*segment);
        }
    }
    // Without its SYN a flow cannot be placed: it was open before the capture began.
    if let Some(first) = first {
        connections.push(assemble(first, &mut current)?);
    }
    Ok(connections)
}

/// Puts segments in order; what was sent twice is taken once.
fn assemble(first: u32, segments: &mut Vec<Segment<'_>>) -> Result<Vec<u8>, Failure> {
    let offset = |segment: &Segment<'_>| segment.sequence.wrapping_sub(first).wrapping_sub(1);
    segments.sort_by_key(offset);
    let mut bytes: Vec<u8> = Vec::new();
    for segment in segments.drain(..).filter(|segment| !segment.payload.is_empty()) {
        let at = usize::try_from(offset(&segment)).unwrap_or(usize::MAX);
        let Some(known) = bytes.len().checked_sub(at) else {
            return Err(Failure::Unexpected(format!("the capture has a hole at byte {at}")));
        };
        bytes.extend(segment.payload.get(known..).unwrap_or_default());
    }
    Ok(bytes)
}

fn u16_be(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_be(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u32_le(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;

    /// A frame from 10.77.0.1:4000 to 10.77.0.2:80.
    fn frame(sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00]);
        let total = u16::try_from(40 + payload.len()).unwrap();
        frame.extend([0x45, 0]);
        frame.extend(total.to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, TCP, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2]);
        frame.extend([0x0f, 0xa0, 0, 80]);
        frame.extend(sequence.to_be_bytes());
        frame.extend([0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        frame.resize(frame.len().max(60), 0); // Ethernet pads short frames
        frame
    }

    fn file(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut file = 0xa1b2_c3d4_u32.to_le_bytes().to_vec();
        file.extend([2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0]);
        for frame in frames {
            let length = u32::try_from(frame.len()).unwrap().to_le_bytes();
            file.extend([0; 8]);
            file.extend(length);
            file.extend(length);
            file.extend(frame);
        }
        file
    }

    #[test]
    fn a_flow_is_put_together_across_wrap_order_and_repetition() {
        let first = u32::MAX - 2;
        let wire = Wire::parse(&file(&[
            frame(first, SYN, b""),
            frame(first.wrapping_add(1), ACK, b"half a MAR"),
            frame(first.wrapping_add(14), ACK, b" and more"),
            frame(first.wrapping_add(11), ACK, b"KER"),
            frame(first.wrapping_add(1), ACK, b"half"),
        ]));
        let wire = wire.unwrap();
        assert!(wire.contains(b"MARKE"), "{wire:?}");
        assert_eq!(wire.summary(80), (0, 1));
        assert_eq!(wire.summary(81), (0, 0));
    }

    #[test]
    fn a_hole_is_an_error() {
        let frames = [frame(7, SYN, b""), frame(8, ACK, b"ab"), frame(11, ACK, b"d")];
        assert!(Wire::parse(&file(&frames)).is_err());
    }

    #[test]
    fn a_port_used_again_is_a_second_flow() {
        let wire = Wire::parse(&file(&[
            frame(7, SYN, b""),
            frame(8, ACK, b"one"),
            frame(900, SYN, b""),
            frame(901, ACK, b"two"),
        ]));
        let wire = wire.unwrap();
        assert_eq!(wire.flows(80).count(), 2);
        assert!(wire.contains(b"one") && wire.contains(b"two"));
    }

    #[test]
    fn only_records_all_the_way_are_tls() {
        assert!(is_tls(b"\x16\x03\x01\x00\x02ab\x17\x03\x03\x00\x09cut"));
        assert!(is_tls(b"\x16\x03\x01\x00\x02ab\x17\x03"));
        assert!(!is_tls(b"\x16\x03\x01\x00\x02abGET /"));
        assert!(!is_tls(b"GET / HTTP/1.1"));
    }

    #[test]
    fn what_is_no_capture_is_an_error() {
        assert!(Wire::parse(b"").is_err());
        assert!(Wire::parse(&[0; 64]).is_err());
    }
}
