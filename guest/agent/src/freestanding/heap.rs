// SPDX-License-Identifier: Apache-2.0
//! The heap: a static that costs nothing until it is used.

use core::alloc::Layout;
use core::mem::MaybeUninit;

use talc::TalcCell;
use talc::base::Talc;
use talc::base::binning::{Binning, DefaultBinning};
use talc::cell::TalcSyncCell;
use talc::source::Source;

/// Above what the largest frame takes while it is read, decoded and obeyed. Connections hold little beside it: a host
/// that sends several of the largest at once can make the agent fail, and with it only what is the host's own.
const SIZE: usize = 24 << 20;

static mut ARENA: [MaybeUninit<u8>; SIZE] = [MaybeUninit::uninit(); SIZE];

/// Hands out [`ARENA`], once. Not `talc`'s `Claim`: that holds a pointer, so the file would need a data segment and the
/// kernel would copy a page of it before the program starts, while `false` is all zeroes.
#[derive(Debug)]
struct Arena {
    taken: bool,
}

// SAFETY: `acquire` allocates nothing.
unsafe impl Source for Arena {
    fn acquire<B: Binning>(talc: &mut Talc<Self, B>, _layout: Layout) -> Result<(), ()> {
        if core::mem::replace(&mut talc.source.taken, true) {
            return Err(());
        }
        // SAFETY: ARENA is valid memory that nothing else uses, and it is claimed once.
        unsafe { talc.claim((&raw mut ARENA).cast(), SIZE) }.map(|_| ()).ok_or(())
    }
}

// SAFETY: the process has one thread and no signal handlers, so no two calls are ever under way together.
#[global_allocator]
static HEAP: TalcSyncCell<Arena, DefaultBinning> = unsafe { TalcSyncCell::new(TalcCell::new(Arena { taken: false })) };
