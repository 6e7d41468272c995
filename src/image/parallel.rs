// SPDX-License-Identifier: Apache-2.0
//! Several transfers at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::Problem;

/// Blobs that are transferred at once, as many as Docker does.
const THREADS: usize = 3;

/// Does `work` for each item, some at a time, and stops early when one fails. `work` is given whether another has failed.
///
/// # Errors
/// The first failure.
pub fn each<T: Sync>(items: &[T], work: impl Fn(&T, &AtomicBool) -> Result<(), Problem> + Sync) -> Result<(), Problem> {
    let (queue, failure, cancelled) = (Mutex::new(items.iter()), Mutex::new(None), AtomicBool::new(false));
    let worker = || {
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        while let Some(item) = next().filter(|_| !cancelled.load(Ordering::Relaxed)) {
            if let Err(problem) = work(item, &cancelled) {
                cancelled.store(true, Ordering::Relaxed);
                // The first to fail is why the others were cancelled.
                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(problem);
            }
        }
    };
    thread::scope(|scope| (0..THREADS.min(items.len())).for_each(|_| _ = scope.spawn(worker)));
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}
