// SPDX-License-Identifier: Apache-2.0
//! What a microVM costs against a namespace container, measured on this host with the user's own image.
//!
//! [`startup::run`] prepares [backends](backend), runs them in turns that [`schedule`] draws, times each from outside with
//! [`measure`], and gives a [`Report`](report::Report), which [`statistics`] sums up.

pub mod backend;
pub mod burst;
pub mod comparison;
pub mod counters;
pub mod density;
pub mod html;
mod interrupt;
pub mod io;
pub mod isolation;
pub mod machine;
pub mod measure;
pub mod probes;
pub mod report;
pub mod schedule;
pub mod startup;
pub mod statistics;
mod svg;
pub mod weight;
