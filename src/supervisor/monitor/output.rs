// SPDX-License-Identifier: Apache-2.0
//! What the program writes: into the log, and to those that are attached.

use std::io::Read;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::Monitor;
use crate::failure::Failure;
use crate::supervisor::log::Log;
use crate::supervisor::wire::{MAX_PAYLOAD, Stream};

/// The copying of output.
pub struct Output {
    monitor: Arc<Monitor>,
    log: Arc<Mutex<Option<Log>>>,
    /// Dropped by each copy when it is through.
    copying: Option<Sender<()>>,
    copied: Receiver<()>,
}

impl Output {
    /// Nothing is copied yet. Without a path there is no log.
    ///
    /// # Errors
    /// The log cannot be written.
    pub fn open(monitor: Arc<Monitor>, log: Option<&Path>) -> Result<Self, Failure> {
        let opened = log.map(Log::open).transpose().map_err(|error| {
            let what = format!("cannot keep the output of container {}", monitor.container.config.name);
            Failure::new(what, error, "free space there, or `--log-driver none`")
        });
        let (sender, copied) = channel();
        Ok(Self { monitor, log: Arc::new(Mutex::new(opened?)), copying: Some(sender), copied })
    }

    /// Copies all of a stream, at the pace of the slowest of those that are attached.
    pub fn copy(&self, mut from: impl Read + Send + 'static, stream: Stream) {
        let (monitor, log, copying) = (Arc::clone(&self.monitor), Arc::clone(&self.log), self.copying.clone());
        thread::spawn(move || {
            let _copying = copying;
            let mut buffer = vec![0; MAX_PAYLOAD];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                let Some(bytes) = buffer.get(..count) else { break };
                keep(&log, stream, bytes);
                monitor.clients.output(stream, bytes);
            }
        });
    }

    /// Waits until all is copied; after `limit` those that do not read are left behind.
    pub fn finish(mut self, limit: Duration) {
        drop(self.copying.take());
        // It never receives anything: it fails once nobody copies any more.
        if self.copied.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            self.monitor.clients.abandon();
            let _ = self.copied.recv_timeout(limit);
        }
        if let Some(log) = &mut *self.log.lock().expect("no thread panics while it holds this")
            && let Err(error) = log.finish()
        {
            log::warn!("cannot keep the last of the output: {error}");
        }
    }
}

fn keep(log: &Mutex<Option<Log>>, stream: Stream, bytes: &[u8]) {
    let mut kept = log.lock().expect("no thread panics while it holds this");
    if let Some(log) = &mut *kept
        && let Err(error) = log.write(stream, bytes)
    {
        // The program goes on: that its disk is full is not its fault.
        log::error!("the container's output is not kept from here on: {error}");
        *kept = None;
    }
}
