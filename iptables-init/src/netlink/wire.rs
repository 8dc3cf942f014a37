//! Netlink messages: written, and taken apart again (netlink(7); the kernel's
//! Documentation/userspace-api/netlink/intro.rst). Pure.

use super::kernel::{NLA_F_NESTED, NLA_TYPE_MASK};

/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct nfgenmsg`, with which each message of netfilter's begins.
pub(super) const GENERIC: usize = 4;
/// `struct nlattr`.
const ATTRIBUTE: usize = 4;

/// What the kernel sent is no message: cut off, or with a length that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel's answer cannot be taken apart")]
pub struct Malformed;

/// Messages and attributes begin at multiples of four.
fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// A message being written.
#[derive(Debug)]
pub(super) struct Message(Vec<u8>);

impl Message {
    /// A message's two headers. `resource` is 0, or the subsystem that a batch is for.
    pub(super) fn new(kind: u16, flags: u16, sequence: u32, family: u8, resource: u8) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        // The sender's port: the kernel knows it.
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend([family, 0]);
        bytes.extend(u16::from(resource).to_be_bytes());
        Self(bytes)
    }

    /// An attribute with any value.
    pub(super) fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.attribute(kind, |message| message.0.extend(value))
    }

    /// A text, ended by a NUL as the kernel wants it.
    pub(super) fn put_text(&mut self, kind: u16, text: &str) -> &mut Self {
        self.attribute(kind, |message| {
            message.0.extend(text.as_bytes());
            message.0.push(0);
        })
    }

    /// A number; netfilter's are big-endian.
    pub(super) fn put_u32(&mut self, kind: u16, number: u32) -> &mut Self {
        self.put(kind, &number.to_be_bytes())
    }

    /// A long number.
    pub(super) fn put_u64(&mut self, kind: u16, number: u64) -> &mut Self {
        self.put(kind, &number.to_be_bytes())
    }

    /// An attribute made of attributes.
    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.attribute(kind | NLA_F_NESTED, fill)
    }

    fn attribute(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        fill(self);
        // What is too long for its header would be refused: the kernel finds bytes left over.
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.write_at(start, &length.to_ne_bytes());
        self.0.resize(aligned(self.0.len()), 0);
        self
    }

    /// Sets flags besides those that it was made with.
    pub(super) fn add_flags(&mut self, flags: u16) {
        let now = array(&self.0, 6).map_or(0, u16::from_ne_bytes);
        self.write_at(6, &(now | flags).to_ne_bytes());
    }

    /// The bytes, with their length in front.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.write_at(0, &length.to_ne_bytes());
        self.0
    }

    fn write_at(&mut self, start: usize, bytes: &[u8]) {
        if let Some(place) = self.0.get_mut(start..start + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
}

/// A message that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Received<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    pub(super) body: &'a [u8],
}

impl<'a> Received<'a> {
    /// The family, and the attributes behind it, of a message of netfilter's.
    pub(super) fn netfilter(&self) -> Result<(u8, Attributes<'a>), Malformed> {
        let family = *self.body.first().ok_or(Malformed)?;
        let attributes = self.body.get(GENERIC..).ok_or(Malformed)?;
        Ok((family, Attributes::of(attributes)?))
    }
}

/// All messages of one datagram.
pub(super) fn messages(mut bytes: &[u8]) -> Result<Vec<Received<'_>>, Malformed> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let length =
            usize::try_from(u32::from_ne_bytes(array(bytes, 0)?)).map_err(|_| Malformed)?;
        found.push(Received {
            kind: u16::from_ne_bytes(array(bytes, 4)?),
            flags: u16::from_ne_bytes(array(bytes, 6)?),
            sequence: u32::from_ne_bytes(array(bytes, 8)?),
            body: bytes.get(HEADER..length).ok_or(Malformed)?,
        });
        // The last may come without its padding.
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
    }
    Ok(found)
}

/// `N` bytes from `start` on.
pub(super) fn array<const N: usize>(bytes: &[u8], start: usize) -> Result<[u8; N], Malformed> {
    let end = start.checked_add(N).ok_or(Malformed)?;
    bytes.get(start..end).and_then(|part| part.try_into().ok()).ok_or(Malformed)
}

/// The attributes of a message, or of another attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attributes<'a>(Vec<(u16, &'a [u8])>);

impl<'a> Attributes<'a> {
    /// Takes them apart, all of them: an answer that is read in part could hide a match.
    pub(super) fn of(mut bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let length = usize::from(u16::from_ne_bytes(array(bytes, 0)?));
            let kind = u16::from_ne_bytes(array(bytes, 2)?) & NLA_TYPE_MASK;
            found.push((kind, bytes.get(ATTRIBUTE..length).ok_or(Malformed)?));
            bytes = bytes.get(aligned(length)..).unwrap_or_default();
        }
        Ok(Self(found))
    }

    /// The value of the last attribute of that kind, as the kernel reads them.
    pub(super) fn find(&self, kind: u16) -> Option<&'a [u8]> {
        self.0.iter().rev().find(|(it, _)| *it == kind).map(|(_, value)| *value)
    }

    /// All values of that kind.
    pub(super) fn all(&self, kind: u16) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().filter(move |(it, _)| *it == kind).map(|(_, value)| *value)
    }

    /// An attribute made of attributes; one that is not there has none.
    pub(super) fn nested(&self, kind: u16) -> Result<Attributes<'a>, Malformed> {
        Attributes::of(self.find(kind).unwrap_or_default())
    }

    /// A text without its NUL. A name of others' that is no UTF-8 is shown as well as can be.
    pub(super) fn text(&self, kind: u16) -> Option<String> {
        let text = self.find(kind)?.split(|byte| *byte == 0).next().unwrap_or_default();
        Some(String::from_utf8_lossy(text).into_owned())
    }

    /// A number.
    pub(super) fn u32(&self, kind: u16) -> Result<Option<u32>, Malformed> {
        self.find(kind).map(|bytes| array(bytes, 0).map(u32::from_be_bytes)).transpose()
    }

    /// A number that may be negative.
    pub(super) fn i32(&self, kind: u16) -> Result<Option<i32>, Malformed> {
        self.find(kind).map(|bytes| array(bytes, 0).map(i32::from_be_bytes)).transpose()
    }

    /// A long number.
    pub(super) fn u64(&self, kind: u16) -> Result<Option<u64>, Malformed> {
        self.find(kind).map(|bytes| array(bytes, 0).map(u64::from_be_bytes)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> Vec<u8> {
        let mut message = Message::new(0x0a06, 5, 7, 2, 0);
        message.put_text(1, "nat").nest(4, |inner| {
            inner.put_u32(1, 0xfffffffb).put_u64(2, 9);
        });
        message.finish()
    }

    #[test]
    fn what_was_written_is_read() {
        let bytes = written();
        let [message] = messages(&bytes).unwrap()[..] else { panic!("one message") };
        assert_eq!((message.kind, message.flags, message.sequence), (0x0a06, 5, 7));
        let (family, attributes) = message.netfilter().unwrap();
        assert_eq!(family, 2);
        assert_eq!(attributes.text(1).as_deref(), Some("nat"));
        let inner = attributes.nested(4).unwrap();
        assert_eq!(inner.i32(1).unwrap(), Some(-5));
        assert_eq!(inner.u64(2).unwrap(), Some(9));
        assert_eq!(inner.u32(3).unwrap(), None);
        // The header, "nat" and its NUL, and the nest.
        assert_eq!(bytes.len(), 16 + 4 + 8 + 4 + 8 + 12);
    }

    #[test]
    fn several_messages_stand_behind_each_other() {
        let bytes = [written(), written()].concat();
        assert_eq!(messages(&bytes).unwrap().len(), 2);
        assert_eq!(messages(&[]).unwrap(), []);
    }

    #[test]
    fn what_is_cut_off_is_malformed() {
        let bytes = written();
        for length in 1..bytes.len() {
            assert_eq!(messages(&bytes[..length]), Err(Malformed), "{length}");
        }
        let attributes = &bytes[HEADER + GENERIC..];
        for length in (1..attributes.len()).filter(|length| *length != 8) {
            assert_eq!(Attributes::of(&attributes[..length]), Err(Malformed), "{length}");
        }
        // A length below its own header would never end.
        assert_eq!(Attributes::of(&[3, 0, 1, 0]), Err(Malformed));
        assert_eq!(messages(&[0; 16]), Err(Malformed));
        assert!(Attributes::of(&[6, 0, 1, 0, 9, 9]).unwrap().u32(1).is_err());
    }
}
