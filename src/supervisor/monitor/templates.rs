// SPDX-License-Identifier: Apache-2.0
//! Templates of images are made while their containers run.

use std::thread::{self, JoinHandle};

use crate::sandbox::{Devices, Prepared, Shape, image_template};

/// Notes that a container has started without a template of its image, and makes one where that is worth it. Who waits
/// for the container does not wait for this.
pub fn make_if_wanted(shape: Shape, devices: Devices, prepared: Prepared) -> Option<JoinHandle<()>> {
    let make = move || {
        let made = image_template::is_wanted(shape, &devices, &prepared).and_then(|wanted| match wanted {
            true => image_template::make(shape, &devices, &prepared),
            false => Ok(None),
        });
        if let Err(failure) = made {
            log::warn!("{failure}");
        }
    };
    thread::Builder::new().name("template".into()).spawn(make).ok()
}
