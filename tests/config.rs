//! From the text of a `vout.toml` to what runs, through the public interface alone.
#![allow(clippy::unwrap_used, reason = "helpers outside of #[test] are not covered by clippy.toml")]

use std::error::Error;
use std::path::Path;

use vout::config::Config;
use vout::filter::Filter;
use vout::graph::Plan;
use vout::path::RelPath;

type TestResult = Result<(), Box<dyn Error>>;

const REFERENCE: &str = include_str!("../docs/configuration.md");

fn parse(text: &str) -> Result<Config, vout::config::ConfigError> {
    Config::parse(text, Path::new("vout.toml"))
}

fn path(text: &str) -> &RelPath {
    RelPath::new(text).unwrap()
}

/// The TOML examples of the reference.
fn examples() -> Vec<&'static str> {
    let fences = REFERENCE.split("```toml\n").skip(1);
    fences.map(|rest| rest.split_once("```").unwrap().0).collect()
}

/// Goal: the reference shows nothing that is refused. Method: parse each of its examples.
#[test]
fn examples_of_the_reference_parse() -> TestResult {
    assert!(examples().len() >= 6);
    for example in examples() {
        parse(example).map_err(|error| format!("{error}\n{example}"))?;
    }
    Ok(())
}

/// Goal: no key is missing from the reference. Method: the hint for an unknown key lists them all.
#[test]
fn reference_describes_every_key() -> TestResult {
    for text in ["[tasks.a]\nzzzzzzzz = 1", "[cache]\nzzzzzzzz = 1"] {
        let hint = parse(text).unwrap_err().hint.ok_or("no hint")?;
        let keys = hint.strip_prefix("the keys are ").ok_or("no list of keys")?;
        for key in keys.split(", ") {
            assert!(REFERENCE.contains(&format!("`{key}`")), "{key} is not described");
        }
    }
    Ok(())
}

#[test]
fn message_of_the_reference_is_the_real_one() {
    let error = parse("[tasks.build]\ncommand = 'x'\ndepends-on = []").unwrap_err();
    let shown = format!("{error}\nhint: {}\n", error.hint.as_deref().unwrap());
    assert!(REFERENCE.contains(&shown), "{shown}");
}

#[test]
fn negative_input_leaves_outputs_alone() -> TestResult {
    let config = parse("[tasks.b]\ncommand = 'x'\ninput = [{ auto = true }, '!dist/**']\n")?;
    let (input, output) = config.task("b").ok_or("no task")?.filters();
    let (input, output) = (Filter::compile(&input)?, Filter::compile(&output)?);
    assert!(!input.selects(path("dist/a.js"), true));
    assert!(!input.selects(path("dist"), true));
    assert!(input.selects(path("src/a.js"), true));
    assert!(output.selects(path("dist/a.js"), true));
    Ok(())
}

#[test]
fn automatic_output_goes_with_explicit_input() -> TestResult {
    let config = parse("[tasks.b]\ncommand = 'x'\ncwd = 'app'\ninput = ['src/**/*.ts', '!**/*.test.ts']\n")?;
    let (input, output) = config.task("b").ok_or("no task")?.filters();
    let (input, output) = (Filter::compile(&input)?, Filter::compile(&output)?);
    assert!(!input.auto());
    assert_eq!(input.walk_roots(), [path("app/src").to_owned()]);
    assert!(input.selects(path("app/src/x/a.ts"), false));
    assert!(!input.selects(path("app/src/x/a.test.ts"), true));
    assert!(!input.selects(path("app/package.json"), true));
    assert!(output.auto() && !output.has_positive_globs());
    Ok(())
}

#[test]
fn every_configured_filter_compiles() -> TestResult {
    for example in examples() {
        for task in parse(example)?.tasks() {
            let (input, output) = task.filters();
            Filter::compile(&input)?;
            Filter::compile(&output)?;
        }
    }
    Ok(())
}

#[test]
fn plan_of_a_task_without_command_runs_what_it_depends_on() -> TestResult {
    let config = parse(
        "[tasks.all]\ndepends_on = ['b', 'a']\n[tasks.a]\ncommand = 'a'\n[tasks.b]\ncommand = 'b'\ndepends_on = ['a']\n",
    )?;
    let plan = Plan::new(&config, &["all"])?;
    let order: Vec<_> = plan.steps.iter().map(|step| step.task.name.as_str()).collect();
    assert_eq!(order, ["a", "b", "all"]);
    assert_eq!(plan.steps[2].waits_for, [0, 1]);
    Ok(())
}
