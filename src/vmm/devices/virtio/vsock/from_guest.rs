// SPDX-License-Identifier: Apache-2.0
//! The tx queue: packets that the guest sends.

use super::super::{Chain, DeviceError, Session};
use super::packet::{Header, Op, Verdict};
use super::stream::{Fate, Phase, Stream};
use super::{MAX_RESETS, TX, Vsock};
use crate::vmm::guest_log::guest_warn;

impl Vsock {
    /// Takes packets from the guest: at most two rounds of the queue at a time, and none while too many answers wait.
    pub(super) fn serve_tx(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        let queue = session.queue(TX)?;
        let mut budget = 2 * u32::from(queue.size().get());
        loop {
            queue.disable_notification()?;
            let mut empty = false;
            while budget > 0 && self.resets.len() < MAX_RESETS && !empty {
                match queue.pop()? {
                    Some(chain) => {
                        self.packet(&chain)?;
                        queue.push(chain.head(), 0)?;
                        budget -= 1;
                    }
                    None => empty = true,
                }
            }
            if budget == 0 {
                queue.reschedule();
            } else if empty && queue.enable_notification()? {
                continue;
            }
            break;
        }
        queue.notify_driver()?;
        Ok(())
    }

    /// One packet. Only a broken ring is an error; nonsense in a packet is the matter of its connection alone.
    fn packet(&mut self, chain: &Chain) -> Result<(), DeviceError> {
        self.counters.tx_packets += 1;
        let mut reader = chain.reader();
        let Ok(header) = Header::read(&mut reader) else {
            self.malformed("packet shorter than a header");
            return Ok(());
        };
        let op = match header.judge(self.cid, reader.remaining()) {
            Verdict::Deliver(op) => op,
            Verdict::Drop(why) => {
                self.malformed(why);
                return Ok(());
            }
            Verdict::Refuse(why) => {
                self.malformed(why);
                self.refuse(&header);
                return Ok(());
            }
        };
        let ports = header.ports();
        let Some(id) = self.streams.find(ports) else {
            match op {
                Op::Request => self.connect(&header),
                // The other end of a connection that ended on both sides at once.
                Op::Reset => {}
                _ => self.queue_reset(header.reset()),
            }
            return Ok(());
        };
        let Some(stream) = self.streams.get_mut(id) else {
            return Ok(());
        };
        stream.learn_credit(header.buf_alloc, header.fwd_cnt);
        let fate = match op {
            Op::Data => {
                self.counters.tx_bytes += u64::from(header.length);
                stream.take_data(&mut reader, header.length)?
            }
            Op::CreditUpdate => Fate::Live,
            Op::CreditRequest => {
                stream.credit_wanted();
                Fate::Live
            }
            Op::Shutdown => stream.guest_shuts(header.flags),
            Op::Reset => Fate::Over,
            Op::Response if stream.phase == Phase::Requested => stream.accept(),
            // A second request for a live connection, or an answer to nothing.
            Op::Request | Op::Response => {
                self.malformed("connection packet that does not fit its connection");
                Fate::Reset
            }
        };
        self.settle(id, fate);
        Ok(())
    }

    fn malformed(&mut self, what: &str) {
        self.counters.malformed += 1;
        guest_warn(format_args!("vsock: {what}"));
    }

    /// Answers a packet that makes no sense with a reset, which also ends the connection it claims to belong to.
    fn refuse(&mut self, header: &Header) {
        let stream = self.streams.find(header.ports()).filter(|_| header.dst_cid == super::HOST_CID);
        if let Some(id) = stream {
            self.streams.remove(id);
        }
        self.queue_reset(header.reset());
    }

    fn connect(&mut self, header: &Header) {
        let ports = header.ports();
        let connected = if self.streams.is_full() { None } else { self.endpoint.connect(ports.host).ok() };
        let Some(Ok(id)) = connected.map(|socket| self.streams.insert(Stream::accepted(socket, ports))) else {
            self.counters.refused += 1;
            return self.queue_reset(header.reset());
        };
        if let Some(stream) = self.streams.get_mut(id) {
            stream.learn_credit(header.buf_alloc, header.fwd_cnt);
        }
        self.streams.bind(ports, id);
        self.counters.from_guest += 1;
        let fate = if self.watch(id) { Fate::Live } else { Fate::Reset };
        self.settle(id, fate);
    }
}
