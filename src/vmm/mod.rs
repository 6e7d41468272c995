// SPDX-License-Identifier: Apache-2.0
//! One microVM: from nothing to running. Usable alone; it knows nothing of containers.
