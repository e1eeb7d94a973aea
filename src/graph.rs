//! The order in which tasks run.

use thiserror::Error;

use crate::config::{Config, TaskConfig};

/// What to run, in an order in which it can run.
///
/// - Every task is there once, behind all that it depends on.
/// - The order is that of the request, dependencies first and in the order in which they are listed; the
///   same request gives the same plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan<'a> {
    /// The tasks.
    pub steps: Vec<Step<'a>>,
}

/// A task of a [`Plan`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step<'a> {
    /// The task.
    pub task: &'a TaskConfig,
    /// Places in the plan of the tasks that must have ended before, in order and each once. All come earlier.
    pub waits_for: Vec<usize>,
}

/// Why there is no plan. That there are no cycles is sure once there is a [`Config`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PlanError {
    /// A task was asked for that does not exist.
    #[error("there is no task {name:?}")]
    UnknownTask {
        /// The name.
        name: String,
        /// The task that was probably meant.
        nearest: Option<String>,
    },
}

impl PlanError {
    /// Returns what to write instead.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownTask { nearest, .. } => {
                nearest.as_ref().map(|near| format!("did you mean {near:?}?"))
            }
        }
    }
}

impl<'a> Plan<'a> {
    /// Plans the tasks called `names` and all that they depend on.
    ///
    /// # Errors
    /// [`PlanError`] where a name is not that of a task.
    pub fn new<S: AsRef<str>>(config: &'a Config, names: &[S]) -> Result<Self, PlanError> {
        let requested = names.iter().map(|name| {
            let name = name.as_ref();
            config.index(name).ok_or_else(|| PlanError::UnknownTask {
                name: name.to_owned(),
                nearest: config.nearest(name).map(str::to_owned),
            })
        });
        let requested = requested.collect::<Result<Vec<_>, _>>()?;
        let dependencies = config.dependencies();
        let tasks: Vec<&TaskConfig> = config.tasks().collect();
        let mut place_of = vec![None; tasks.len()];
        let mut steps = Vec::new();
        for task in dependencies_first(&dependencies, &requested) {
            // Dependencies come first, so each has its place already.
            let mut waits_for: Vec<usize> =
                dependencies[task].iter().filter_map(|&dependency| place_of[dependency]).collect();
            waits_for.sort_unstable();
            waits_for.dedup();
            place_of[task] = Some(steps.len());
            steps.push(Step { task: tasks[task], waits_for });
        }
        Ok(Self { steps })
    }
}

/// Returns what is reachable from `roots`, each once and behind its dependencies; these have no cycle.
// Neither this nor the search for cycles calls itself: a long chain must not exhaust the stack.
fn dependencies_first(dependencies: &[Vec<usize>], roots: &[usize]) -> Vec<usize> {
    let mut order = Vec::new();
    let mut seen = vec![false; dependencies.len()];
    for &root in roots {
        // What is being visited, and how many of its dependencies have been.
        let mut path: Vec<(usize, usize)> = Vec::new();
        let mut next = Some(root);
        loop {
            if let Some(task) = next.take()
                && !std::mem::replace(&mut seen[task], true)
            {
                path.push((task, 0));
            }
            let Some((task, visited)) = path.last_mut() else { break };
            next = dependencies[*task].get(*visited).copied();
            *visited += 1;
            if next.is_none() {
                order.push(*task);
                path.pop();
            }
        }
    }
    order
}

/// Returns tasks of which each depends on the next, and the last on the first, if there are such. The first
/// is the one with the lowest number.
pub(crate) fn find_cycle(dependencies: &[Vec<usize>]) -> Option<Vec<usize>> {
    // Tasks without open dependencies are taken away until only cycles, and what waits for them, are left.
    let mut dependents = vec![Vec::new(); dependencies.len()];
    for (task, list) in dependencies.iter().enumerate() {
        list.iter().for_each(|&dependency| dependents[dependency].push(task));
    }
    let mut open: Vec<usize> = dependencies.iter().map(Vec::len).collect();
    let mut ready: Vec<usize> = (0..open.len()).filter(|&task| open[task] == 0).collect();
    while let Some(task) = ready.pop() {
        for &dependent in &dependents[task] {
            open[dependent] -= 1;
            if open[dependent] == 0 {
                ready.push(dependent);
            }
        }
    }
    // Each of them has an open dependency: following these leads into a cycle.
    let mut place_in_path = vec![None; dependencies.len()];
    let mut path = Vec::new();
    let mut task = (0..open.len()).find(|&task| open[task] > 0)?;
    while place_in_path[task].is_none() {
        place_in_path[task] = Some(path.len());
        path.push(task);
        task = dependencies[task].iter().copied().find(|&dependency| open[dependency] > 0)?;
    }
    let mut cycle = path.split_off(place_in_path[task]?);
    let lowest = cycle.iter().enumerate().min_by_key(|&(_, task)| task).map_or(0, |(place, _)| place);
    cycle.rotate_left(lowest);
    Some(cycle)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn plan(text: &str, names: &[&str]) -> Result<Vec<(String, Vec<usize>)>, PlanError> {
        let config = Config::parse(text, Path::new("vout.toml")).unwrap();
        let plan = Plan::new(&config, names)?;
        Ok(plan.steps.into_iter().map(|step| (step.task.name.clone(), step.waits_for)).collect())
    }

    const DIAMOND: &str = r#"
        [tasks.app]
        command = "app"
        depends_on = ["lib", "gen", "lib"]
        [tasks.lib]
        command = "lib"
        depends_on = ["gen"]
        [tasks.gen]
        command = "gen"
        [tasks.lint]
        command = "lint"
    "#;

    #[test]
    fn dependencies_come_first_and_each_task_once() {
        let step = |name: &str, waits_for: &[usize]| (name.to_owned(), waits_for.to_vec());
        assert_eq!(
            plan(DIAMOND, &["app"]).unwrap(),
            [step("gen", &[]), step("lib", &[0]), step("app", &[0, 1])]
        );
        assert_eq!(
            plan(DIAMOND, &["lint", "lib", "lint", "gen"]).unwrap(),
            [step("lint", &[]), step("gen", &[]), step("lib", &[1])]
        );
        assert_eq!(plan(DIAMOND, &[]).unwrap(), []);
    }

    #[test]
    fn unknown_name_is_refused_with_the_nearest() {
        let error = plan(DIAMOND, &["lint", "ilb"]).unwrap_err();
        assert_eq!(error.to_string(), r#"there is no task "ilb""#);
        assert_eq!(error.hint().as_deref(), Some(r#"did you mean "lib"?"#));
        assert_eq!(plan(DIAMOND, &["deploy-everything"]).unwrap_err().hint(), None);
    }

    #[test]
    fn cycle_is_found_in_order() {
        assert_eq!(find_cycle(&[vec![1], vec![2], vec![1, 3], vec![]]), Some(vec![1, 2]));
        assert_eq!(find_cycle(&[vec![], vec![1]]), Some(vec![1]));
        assert_eq!(find_cycle(&[vec![2], vec![0], vec![1]]), Some(vec![0, 2, 1]));
        assert_eq!(find_cycle(&[vec![1, 2], vec![2, 2], vec![]]), None);
        assert_eq!(find_cycle(&[]), None);
    }

    #[test]
    fn long_chain_needs_no_deep_stack() {
        let tasks = 200_000;
        let mut chain: Vec<Vec<usize>> = (0..tasks).map(|task| vec![task + 1]).collect();
        chain.push(vec![]);
        assert_eq!(find_cycle(&chain), None);
        assert_eq!(dependencies_first(&chain, &[0]), (0..=tasks).rev().collect::<Vec<_>>());
        chain[tasks].push(0);
        assert_eq!(find_cycle(&chain).unwrap().len(), tasks + 1);
    }

    proptest! {
        /// Any graph either has a cycle that is one, or an order that respects all dependencies.
        #[test]
        fn any_graph_has_an_order_or_a_cycle(
            dependencies in prop::collection::vec(prop::collection::vec(0..8_usize, 0..4), 8),
        ) {
            if let Some(cycle) = find_cycle(&dependencies) {
                for (i, &task) in cycle.iter().enumerate() {
                    prop_assert!(dependencies[task].contains(&cycle[(i + 1) % cycle.len()]));
                }
                return Ok(());
            }
            let order = dependencies_first(&dependencies, &[0, 1, 2, 3, 4, 5, 6, 7]);
            prop_assert_eq!(order.len(), 8);
            let place = |task| order.iter().position(|&other| other == task);
            for (task, list) in dependencies.iter().enumerate() {
                for &dependency in list {
                    prop_assert!(place(dependency) < place(task));
                }
            }
        }
    }
}
