// SPDX-License-Identifier: Apache-2.0
//! Templates of images that are made before anybody starts a container of them.

use coracle_protocol::Assembly;

use super::describe;
use super::monitor::attach;
use super::record::Config;
use crate::failure::Failure;
use crate::image::{ImageError, Store};
use crate::sandbox::{Devices, Prepared, image_template};

/// What can be made ahead of a container like this; `None` where its VM starts from a base template.
pub fn prepared(config: &Config, container: &coracle_protocol::Container) -> Option<Prepared> {
    let process = describe::process(&config.process, &config.surroundings, None);
    let assembly = Assembly::of(container, &process).filter(|_| !config.cold)?;
    Some(Prepared { assembly, image: config.image.name.clone() })
}

/// Makes the template for containers like this, of which there need be none; gives its name.
///
/// # Errors
/// There is no template of such containers, or it cannot be made.
pub fn warm(config: &Config) -> Result<String, Failure> {
    let what = format!("cannot make a template of image {}", config.image.name);
    let explain = |problem| Failure::from(ImageError::new(&what)(problem));
    let store = Store::open().map_err(explain)?;
    let _content = store.hold_content().map_err(explain)?;
    let image = store.image(&config.image.manifest).map_err(explain)?;
    let rootfs = store.rootfs(&image).map_err(Failure::from)?;
    let connected = config.network.as_ref().map(|network| attach(config, network)).transpose()?;
    let nets = connected.iter().map(crate::network::Attachment::config).collect();
    let devices = Devices { rootfs, nets, ..Devices::default() };
    let container = describe::container(config, connected.as_ref(), &[]);
    let prepared = prepared(config, &container).ok_or_else(|| {
        let why = "containers that are kept, or have mounts or privileges, start from the base template";
        Failure::new(&what, why, "`--rm` alone; `coracle template warm`")
    })?;
    let made = image_template::make(config.shape, &devices, &prepared)?;
    let busy = || Failure::new(&what, "another one is being made", "the same once more");
    Ok(made.ok_or_else(busy)?.file_name().unwrap_or_default().to_string_lossy().into_owned())
}
