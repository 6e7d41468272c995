// SPDX-License-Identifier: Apache-2.0
//! The rx queue: packets to the guest, stream after stream in turns.

use super::super::chain::used_length;
use super::super::{Chain, DeviceError, Queue, Session};
use super::packet::{HEADER_LEN, Header, Op};
use super::stream::Fate;
use super::table::Id;
use super::{MAX_RESETS, RX, TX, Vsock};

/// What a turn came to.
enum Turn {
    /// As many buffers were filled.
    Filled(u32),
    /// The guest has left no buffer.
    NoBuffer,
}

impl Vsock {
    /// Sends what waits for the guest while it has buffers: at most two rounds of the queue at a time.
    pub(super) fn serve_rx(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        if self.resets.is_empty() && self.streams.next_turn().is_none() {
            return Ok(());
        }
        let held_back = self.resets.len() >= MAX_RESETS;
        let queue = session.queue(RX)?;
        let mut budget = 2 * u32::from(queue.size().get());
        queue.disable_notification()?;
        loop {
            let turn = if let Some(header) = self.resets.front().copied() {
                let turn = self.control(queue, &header)?;
                if matches!(turn, Turn::Filled(_)) {
                    self.resets.pop_front();
                }
                turn
            } else if let Some(id) = self.streams.next_turn() {
                self.turn(queue, id)?
            } else {
                break;
            };
            match turn {
                Turn::Filled(count) => budget = budget.saturating_sub(count.max(1)),
                Turn::NoBuffer if queue.enable_notification()? => queue.disable_notification()?,
                // The driver's notification of new buffers leads back here.
                Turn::NoBuffer => break,
            }
            if budget == 0 {
                queue.reschedule();
                break;
            }
        }
        queue.notify_driver()?;
        if held_back && self.resets.len() < MAX_RESETS {
            session.queue(TX)?.reschedule();
        }
        Ok(())
    }

    /// One packet without data.
    fn control(&mut self, queue: &mut Queue, header: &Header) -> Result<Turn, DeviceError> {
        let Some(chain) = queue.pop()? else {
            return Ok(Turn::NoBuffer);
        };
        let used = self.put(&chain, header)?;
        queue.push(used.0, used.1)?;
        Ok(Turn::Filled(1))
    }

    /// Writes a header; gives what the used ring is to say of the chain.
    fn put(&mut self, chain: &Chain, header: &Header) -> Result<(u16, u32), DeviceError> {
        header.write(&mut chain.writer())?;
        self.counters.rx_packets += 1;
        self.counters.rx_bytes += u64::from(header.length);
        Ok((chain.head(), header.length.saturating_add(used_length(HEADER_LEN))))
    }

    /// The turn of one stream: one packet without data, or as much data as some buffers take.
    fn turn(&mut self, queue: &mut Queue, id: Id) -> Result<Turn, DeviceError> {
        let Some(stream) = self.streams.get_mut(id).filter(|stream| stream.wants_turn()) else {
            self.streams.end_turn();
            return Ok(Turn::Filled(0));
        };
        let ports = stream.ports;
        if let Some((op, flags)) = stream.control() {
            let (buf_alloc, fwd_cnt) = stream.credit.advertise();
            let header = Header { flags, buf_alloc, fwd_cnt, ..self.header(ports, op) };
            let turn = self.control(queue, &header)?;
            if matches!(turn, Turn::Filled(_)) {
                self.streams.end_turn();
                if let Some(stream) = self.streams.get_mut(id) {
                    stream.control_sent(op);
                }
                self.settle(id, Fate::Live);
            }
            return Ok(turn);
        }
        let mut chains = Vec::with_capacity(stream.batch());
        queue.pop_into(&mut chains, stream.batch())?;
        if chains.is_empty() {
            return Ok(Turn::NoBuffer);
        }
        let sizes = stream.receive(&chains, HEADER_LEN)?;
        let (buf_alloc, fwd_cnt) = stream.credit.advertise();
        let header = Header { buf_alloc, fwd_cnt, ..self.header(ports, Op::Data) };
        let filled = chains.iter().zip(&sizes);
        let used = filled.map(|(chain, size)| self.put(chain, &Header { length: used_length(*size), ..header }));
        queue.push_batch(&used.collect::<Result<Vec<_>, _>>()?)?;
        for _ in sizes.len()..chains.len() {
            queue.undo_pop();
        }
        self.streams.end_turn();
        self.settle(id, Fate::Live);
        Ok(Turn::Filled(used_length(sizes.len())))
    }
}
