//! What is done to the bytes of one direction, without any I/O.

use std::time::Duration;

use crate::stream::End;

/// Something that goes wrong. `at` counts the bytes of the direction as they come in, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Before this byte the direction ends: with a FIN alone, or with a RST of both.
    Cut {
        /// The first byte that is not passed on.
        at: u64,
        /// How the receiver sees it.
        how: End,
    },
    /// Before this byte there is a pause, so that it begins a segment.
    Pause {
        /// The byte.
        at: u64,
        /// How long.
        time: Duration,
    },
    /// Each byte is written by itself.
    Bytewise,
    /// This byte is another.
    Corrupt {
        /// The byte.
        at: u64,
        /// The bits that are flipped.
        mask: u8,
    },
    /// This byte comes twice.
    Duplicate {
        /// The byte.
        at: u64,
    },
    /// This byte and the next have changed places.
    Swap {
        /// The first of both.
        at: u64,
    },
    /// From this byte on everything is taken, and nothing passed on, the end included.
    Swallow {
        /// The first byte that is lost.
        at: u64,
    },
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Write these.
    Send(Vec<u8>),
    /// Let time pass.
    Wait(Duration),
    /// End the direction, or by a RST the connection.
    End(End),
    /// Pass nothing more on.
    Swallow,
}

/// The faults of one direction, and how far it has come.
#[derive(Debug)]
pub(crate) struct Script {
    faults: Vec<Fault>,
    offset: u64,
    /// The first of two that change places.
    held: Option<u8>,
    over: bool,
}

impl Script {
    pub(crate) fn new(faults: Vec<Fault>) -> Self {
        Self { faults, offset: 0, held: None, over: false }
    }

    /// What becomes of the next bytes; of none, the end of the direction. After an end nothing
    /// does.
    pub(crate) fn next(&mut self, bytes: &[u8]) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut pending = Vec::new();
        if bytes.is_empty() && !self.over {
            pending.extend(self.held.take());
            flush(&mut pending, &mut steps);
            steps.push(Step::End(End::Fin));
            self.over = true;
        }
        for byte in bytes {
            if self.over {
                break;
            }
            self.one(*byte, &mut pending, &mut steps);
            self.offset += 1;
        }
        flush(&mut pending, &mut steps);
        steps
    }

    fn one(&mut self, byte: u8, pending: &mut Vec<u8>, steps: &mut Vec<Step>) {
        let (here, mut byte, mut twice, mut hold, mut alone) =
            (self.offset, byte, false, false, false);
        for fault in &self.faults {
            match *fault {
                Fault::Cut { at, how } if at == here => {
                    flush(pending, steps);
                    steps.push(Step::End(how));
                    self.over = true;
                    return;
                }
                Fault::Swallow { at } if at == here => {
                    flush(pending, steps);
                    steps.push(Step::Swallow);
                    self.over = true;
                    return;
                }
                Fault::Pause { at, time } if at == here => {
                    flush(pending, steps);
                    steps.push(Step::Wait(time));
                }
                Fault::Corrupt { at, mask } if at == here => byte ^= mask,
                Fault::Duplicate { at } if at == here => twice = true,
                Fault::Swap { at } if at == here => hold = true,
                Fault::Bytewise => alone = true,
                _ => {}
            }
        }
        if hold {
            self.held = Some(byte);
            return;
        }
        let copies = if twice { 2 } else { 1 };
        let these = std::iter::repeat_n(byte, copies).chain(self.held.take());
        for byte in these {
            pending.push(byte);
            if alone {
                flush(pending, steps);
            }
        }
    }
}

fn flush(pending: &mut Vec<u8>, steps: &mut Vec<Step>) {
    if !pending.is_empty() {
        steps.push(Step::Send(std::mem::take(pending)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"abcdef";

    /// What becomes of [`TEXT`] and its end, given in pieces of a size.
    fn steps(faults: &[Fault], size: usize) -> Vec<Step> {
        let mut script = Script::new(faults.to_vec());
        let pieces = TEXT.chunks(size).chain([[].as_slice()]);
        pieces.flat_map(|piece| script.next(piece)).collect()
    }

    /// The bytes that are sent, and what else is done.
    fn seen(faults: &[Fault], size: usize) -> (Vec<u8>, Vec<Step>) {
        let (mut sent, mut others) = (Vec::new(), Vec::new());
        for step in steps(faults, size) {
            match step {
                Step::Send(bytes) => sent.extend(bytes),
                other => others.push(other),
            }
        }
        (sent, others)
    }

    #[test]
    fn each_fault_does_the_same_in_whatever_pieces_the_bytes_come() {
        let fin = || vec![Step::End(End::Fin)];
        let wait = Duration::from_millis(1);
        for size in 1..=TEXT.len() {
            assert_eq!(seen(&[], size), (TEXT.to_vec(), fin()));
            let corrupt = Fault::Corrupt { at: 2, mask: 0x20 };
            assert_eq!(seen(&[corrupt], size), (b"abCdef".to_vec(), fin()));
            assert_eq!(seen(&[Fault::Duplicate { at: 5 }], size), (b"abcdeff".to_vec(), fin()));
            assert_eq!(seen(&[Fault::Swap { at: 0 }], size), (b"bacdef".to_vec(), fin()));
            assert_eq!(seen(&[Fault::Swap { at: 5 }], size), (TEXT.to_vec(), fin()), "no next");
            assert_eq!(seen(&[Fault::Bytewise], size), (TEXT.to_vec(), fin()));
            let pause = Fault::Pause { at: 3, time: wait };
            assert_eq!(
                seen(&[pause], size),
                (TEXT.to_vec(), [vec![Step::Wait(wait)], fin()].concat())
            );
            for how in [End::Fin, End::Reset] {
                let cut = Fault::Cut { at: 4, how };
                assert_eq!(seen(&[cut], size), (b"abcd".to_vec(), vec![Step::End(how)]));
            }
            let swallow = Fault::Swallow { at: 1 };
            assert_eq!(seen(&[swallow], size), (b"a".to_vec(), vec![Step::Swallow]));
        }
    }

    #[test]
    fn single_bytes_and_what_follows_a_pause_are_sends_of_their_own() {
        let sends = |faults: &[Fault]| {
            let steps = steps(faults, TEXT.len());
            steps.iter().filter(|step| matches!(step, Step::Send(_))).count()
        };
        assert_eq!(sends(&[]), 1);
        assert_eq!(sends(&[Fault::Bytewise]), TEXT.len());
        assert_eq!(sends(&[Fault::Pause { at: 3, time: Duration::ZERO }]), 2);
    }

    #[test]
    fn faults_add_up() {
        let faults = [
            Fault::Corrupt { at: 1, mask: 0x20 },
            Fault::Swap { at: 1 },
            Fault::Cut { at: 4, how: End::Reset },
        ];
        assert_eq!(seen(&faults, 2), (b"acBd".to_vec(), vec![Step::End(End::Reset)]));
    }
}
