//! Breadth-first search over all reachable states.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::Side;
use super::agents::{Script, Successors, World};

/// What a search found.
#[derive(Debug)]
pub struct Report {
    pub states: usize,
    pub transitions: usize,
    pub finished: usize,
    /// The first thing that went wrong, with the states that led there.
    pub failure: Option<(String, Vec<String>)>,
}

/// Visits every state that `script` can reach. Fails at a violation, at a state in which nobody can move
/// although something is left to do, and at a state from which the end cannot be reached any more.
pub fn explore(script: &Script) -> Report {
    let mut numbers: HashMap<World, usize> = HashMap::new();
    let mut worlds = vec![World::new(script)];
    let mut parents = vec![0_usize];
    let mut predecessors: Vec<Vec<usize>> = vec![Vec::new()];
    numbers.insert(worlds[0].clone(), 0);
    let mut ends = Vec::new();
    let mut report = Report { states: 0, transitions: 0, finished: 0, failure: None };
    let mut at = 0;
    while at < worlds.len() {
        let world = worlds[at].clone();
        let finished = world.is_finished(script);
        if finished {
            ends.push(at);
        }
        let next = successors(&world, script);
        if next.is_empty() && !finished {
            report.failure =
                Some(("everybody sleeps with work pending".into(), trace(&worlds, &parents, at)));
            return report;
        }
        for successor in next {
            report.transitions += 1;
            let successor = match successor {
                Ok(successor) => successor,
                Err(violation) => {
                    report.failure = Some((violation.into(), trace(&worlds, &parents, at)));
                    return report;
                }
            };
            match numbers.entry(successor) {
                Entry::Occupied(known) => predecessors[*known.get()].push(at),
                Entry::Vacant(new) => {
                    worlds.push(new.key().clone());
                    new.insert(worlds.len() - 1);
                    parents.push(at);
                    predecessors.push(vec![at]);
                }
            }
        }
        at += 1;
    }
    report.states = worlds.len();
    report.finished = ends.len();
    if let Some(lost) = cannot_reach(&ends, &predecessors) {
        report.failure = Some(("the end is out of reach".into(), trace(&worlds, &parents, lost)));
    }
    report
}

fn successors(world: &World, script: &Script) -> Successors {
    let mut out = Vec::new();
    world.stub_steps(script, &mut out);
    world.host_steps(script, &mut out);
    world.interrupter_steps(script, &mut out);
    for side in [Side::Stub, Side::Supervisor] {
        let mut drained = world.clone();
        if drained.memory.drain_one(side) {
            out.push(Ok(drained));
        }
    }
    out
}

/// A state from which no end can be reached.
fn cannot_reach(ends: &[usize], predecessors: &[Vec<usize>]) -> Option<usize> {
    let mut reaches = vec![false; predecessors.len()];
    let mut stack = ends.to_vec();
    while let Some(state) = stack.pop() {
        if !std::mem::replace(&mut reaches[state], true) {
            stack.extend(&predecessors[state]);
        }
    }
    reaches.iter().position(|reaches| !reaches)
}

fn trace(worlds: &[World], parents: &[usize], mut at: usize) -> Vec<String> {
    let mut steps = vec![format!("{:?}", worlds[at])];
    while at != 0 {
        at = parents[at];
        steps.push(format!("{:?}", worlds[at]));
    }
    steps.reverse();
    steps
}
