//! Leaders killed, sides cut off with and without the leader, no majority anywhere, everybody killed: what was
//! acknowledged stays, what clients saw can be, and it goes on in time.

use std::time::{Duration, Instant};

use dwcp_lab::watchdog::Watchdog;

use super::kit::Cluster;
use super::trial::Trial;

fn kill_the_leader(trial: &mut Trial) {
    let old = trial.leader();
    let killed = Instant::now();
    trial.cluster.kill(old);
    trial.new_leader("leader killed", &trial.others(&[old]), killed);
    trial.cluster.start(old);
}

/// As many followers as may be missing.
fn cut_a_minority_of_followers(trial: &mut Trial) {
    let leader = trial.leader();
    let may_miss = (trial.cluster.size() - 1) / 2;
    let away: Vec<usize> = trial.others(&[leader])[..may_miss].to_vec();
    let rest = trial.others(&away);
    trial.cluster.part(&[&rest, &away]);
    trial.serves_nobody("a minority", &away);
    trial.serves(&rest);
    assert_eq!(trial.cluster.status(leader).unwrap()["role"], "leader");
    trial.cluster.heal();
}

/// The leader is on the smaller side.
fn cut_the_leader_from_the_majority(trial: &mut Trial) {
    let leader = trial.leader();
    let may_miss = (trial.cluster.size() - 1) / 2;
    let mut away = vec![leader];
    away.extend_from_slice(&trial.others(&[leader])[..may_miss - 1]);
    let rest = trial.others(&away);
    let cut = Instant::now();
    trial.cluster.part(&[&rest, &away]);
    trial.new_leader("leader cut off", &rest, cut);
    trial.serves_nobody("the old leader's side", &away);
    trial.serves(&rest);
    trial.cluster.heal();
}

/// No side has a majority: nobody agrees on anything, and as soon as they meet again, they do.
fn part_so_that_nobody_has_a_majority(trial: &mut Trial) {
    let all = trial.all();
    let sides: Vec<&[usize]> = all.chunks((all.len() - 1) / 2).collect();
    trial.cluster.part(&sides);
    trial.serves_nobody("no side has a majority", &all);
    let healed = Instant::now();
    trial.cluster.heal();
    trial.recovers("no majority until now", healed);
}

fn ordeal(size: usize) {
    let _watchdog = Watchdog::new("chaos", Duration::from_secs(240));
    let mut trial = Trial::begin(Cluster::begin(size));
    trial.phase("calm", |trial| trial.serves(&trial.all()));
    for _ in 0..3 {
        trial.phase("leader killed", kill_the_leader);
    }
    trial.phase("minority cut off", cut_a_minority_of_followers);
    trial.phase("leader cut off", cut_the_leader_from_the_majority);
    trial.phase("no majority", part_so_that_nobody_has_a_majority);
    trial.phase("all killed", Trial::all_killed);
}

#[test]
fn three_nodes_outlive_kills_and_cuts() {
    ordeal(3);
}

#[test]
fn five_nodes_outlive_kills_and_cuts() {
    ordeal(5);
}
