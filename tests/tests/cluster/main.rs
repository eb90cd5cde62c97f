//! Clusters of control planes in network namespaces: what they agreed on stays, whoever is killed, cut off, full or
//! wrong about the time; the kill switch without a quorum; rollouts.
//!
//! | module | what |
//! |---|---|
//! | [`agreed`], [`kill_switch`], [`rollouts`] | what a cluster is for |
//! | [`chaos`] | leaders killed, sides cut off, everybody killed |
//! | [`disks`] | disks that are full |
//! | [`clocks`] | clocks that are wrong, or run at another speed |
//! | [`kit`], [`rest`] | nodes, their lines and disks; one request |
//! | [`trial`], [`clients`], [`history`] | clients that ask all the while, and whether what they saw can be |
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod agreed;
mod chaos;
mod clients;
mod clocks;
mod disks;
mod history;
mod kill_switch;
mod kit;
mod rest;
mod rollouts;
mod trial;
