// SPDX-License-Identifier: Apache-2.0
//! What a Coracle agent and its host say to each other.
