use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::path::RelPath;
use crate::serving::{Transport, Wishes};
use crate::task::{CommandLine, FilterItem, FilterSpec, MtimePolicy};

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("vout.toml"))
}

fn glob(pattern: &str) -> FilterItem {
    FilterItem::Glob { pattern: pattern.into(), negative: false }
}

fn negative(pattern: &str) -> FilterItem {
    FilterItem::Glob { pattern: pattern.into(), negative: true }
}

/// Parses a task `t` with the given lines and returns its input filter.
fn input(lines: &str) -> Vec<FilterItem> {
    let config = parse(&format!("[tasks.t]\ncommand = 'x'\n{lines}\n")).unwrap();
    config.task("t").unwrap().filters().0.0
}

/// Asserts message and hint of the error that `text` gives.
fn refused(text: &str, message: &str, hint: Option<&str>) {
    let error = parse(text).unwrap_err();
    assert_eq!((error.to_string().as_str(), error.hint.as_deref()), (message, hint), "{text}");
}

#[test]
fn every_key_is_read() {
    let config = parse(
        r#"
        [cache]
        store = "../shared-store"
        size_max = "10 GiB"
        age_max = "30d"
        entries_per_task_max = 4

        [mount]
        transport = "dev"
        passthrough = false
        xattrs = true
        exclusive = true

        [tasks."build:app"]
        input = [{ auto = true }, "!dist/**", { pattern = "tsconfig.json", base = "workspace" }]
        command = ["tsc -b", "vite build && cp -r public dist"]
        cwd = "./packages/app/"
        depends_on = ["gen"]
        env = ["NODE_ENV", "VITE_*"]
        untracked_env = ["CI"]
        output = ["dist/**", { pattern = "!**/*.map", base = "cwd" }]
        cache = false
        clean = true
        mtime = "preserve"
        discard_on_failure = true

        [tasks.gen]
        command = "make gen"
        "#,
    )
    .unwrap();
    assert_eq!(
        *config.cache(),
        CacheConfig {
            store: Some("../shared-store".into()),
            size_max_bytes: Some(10 << 30),
            age_max: Some(Duration::from_secs(30 * 86_400)),
            entries_per_task_max: Some(4),
        }
    );
    assert_eq!(
        config.serving(),
        Wishes { transport: Transport::Dev, passthrough: Some(false), xattrs: true, exclusive: true }
    );
    let names: Vec<_> = config.tasks().map(|task| task.name.as_str()).collect();
    assert_eq!(names, ["build:app", "gen"]);
    let expected = TaskConfig {
        name: "build:app".into(),
        commands: vec![
            CommandLine::parse("tsc -b"),
            CommandLine::Shell("vite build && cp -r public dist".into()),
        ],
        cwd: RelPath::new("packages/app").unwrap().to_owned(),
        depends_on: vec!["gen".into()],
        env: vec!["NODE_ENV".into(), "VITE_*".into()],
        untracked_env: vec!["CI".into()],
        input: FilterSpec(vec![FilterItem::Auto, negative("packages/app/dist/**"), glob("tsconfig.json")]),
        output: FilterSpec(vec![glob("packages/app/dist/**"), negative("packages/app/**/*.map")]),
        cache: false,
        clean: true,
        mtime: MtimePolicy::Preserve,
        discard_on_failure: true,
    };
    assert_eq!(config.task("build:app"), Some(&expected));
}

#[test]
fn missing_keys_have_defaults() {
    let config = parse("tasks.t.command = 'make'").unwrap();
    let task = config.task("t").unwrap();
    assert_eq!(task.filters(), (FilterSpec::default(), FilterSpec::default()));
    assert_eq!((task.cache, task.clean, task.discard_on_failure), (true, false, false));
    assert_eq!((task.mtime, &*task.cwd), (MtimePolicy::Shift, RelPath::ROOT));
    assert_eq!(*config.cache(), CacheConfig::default());
    assert_eq!(config.serving(), Wishes::default());
    assert_eq!(parse("").unwrap().tasks().len(), 0);
}

#[test]
fn empty_filter_is_nothing_and_negatives_alone_take_from_auto() {
    assert_eq!(input("input = []"), []);
    assert_eq!(input("input = ['!a']"), [FilterItem::Auto, negative("a")]);
    assert_eq!(input("input = ['b', '!a']"), [glob("b"), negative("a")]);
    assert_eq!(input("input = ['\\!a']"), [glob("\\!a")]);
}

#[test]
fn patterns_are_relative_to_the_working_directory_unless_they_say_otherwise() {
    assert_eq!(input("input = ['a', '../b']\ncwd = 'x/y'"), [glob("x/y/a"), glob("x/b")]);
    assert_eq!(input("input = [{ pattern = '!a', base = 'workspace' }, 'b']\ncwd = 'x'")[0], negative("a"));
    assert_eq!(input("cwd = '[x]'\ninput = ['*.c']"), [glob("\\[x\\]/*.c")]);
}

#[test]
fn task_may_only_name_what_it_depends_on() {
    let config = parse("[tasks.all]\ndepends_on = ['a']\n[tasks.a]\ncommand = 'a'").unwrap();
    assert_eq!(config.task("all").unwrap().commands, []);
}

#[test]
fn unknown_keys_are_refused_with_the_nearest() {
    refused(
        "[task.a]\ncommand = 'x'",
        r#"vout.toml:1:2: unknown key "task" in the file"#,
        Some(r#"did you mean "tasks"?"#),
    );
    refused(
        "[tasks.a]\ncommand = 'x'\n  outputs = []",
        r#"vout.toml:3:3: unknown key "outputs" in task "a""#,
        Some(r#"did you mean "output"?"#),
    );
    refused(
        "[cache]\nttl = 3",
        r#"vout.toml:2:1: unknown key "ttl" in [cache]"#,
        Some("the keys are store, size_max, age_max, entries_per_task_max"),
    );
    refused(
        "[tasks.a]\ncommand = 'x'\ninput = [{ patern = 'x' }]",
        r#"vout.toml:3:12: unknown key "patern" in a pattern"#,
        Some(r#"did you mean "pattern"?"#),
    );
}

#[test]
fn wrong_types_and_values_are_refused() {
    for (lines, message) in [
        ("command = 3", r#"2:11: "command" must be a string or an array of strings, not an integer"#),
        (
            "command = ['a', true]",
            r#"2:17: "command" must be a string or an array of strings, not a boolean"#,
        ),
        ("command = []", r#"2:11: "command" cannot be "[]": there is nothing to run"#),
        ("command = ' '", r#"2:11: "command" cannot be " ": there is nothing to run"#),
        ("cwd = '../x'", r#"2:7: "cwd" cannot be "../x": it leads out of the workspace"#),
        ("cwd = '/x'", r#"2:7: "cwd" cannot be "/x": it is relative to the workspace root"#),
        ("cache = 'yes'", r#"2:9: "cache" must be true or false, not a string"#),
        ("env = 'A'", r#"2:7: "env" must be an array of names, not a string"#),
        (
            "env = ['A=1']",
            r#"2:8: "env" cannot be "A=1": only the name is given here; the value comes from the environment"#,
        ),
        ("env = ['A']\nuntracked_env = ['A']", r#"3:17: "A" is in both 'env' and 'untracked_env'"#),
        ("output = 'dist'", r#"2:10: "output" must be an array of patterns, not a string"#),
        (
            "output = ['auto']",
            r#"2:11: "output" cannot be "auto": as a string it would be the name of a file"#,
        ),
        ("output = [{ auto = false }]", r#"2:20: "auto" cannot be "false": leave the item out instead"#),
        (
            "output = [{ base = 'cwd' }]",
            r#"2:11: "output" must be a pattern, { auto = true }, or { pattern = "…", base = "workspace" }, not a table"#,
        ),
        ("output = ['!a[']", r#"2:11: pattern "!a[" has a '[' without its ']'"#),
        ("output = ['../x']", r#"2:11: pattern "../x" leads out of the workspace"#),
        ("output = ['/x']", r#"2:11: pattern "/x" is absolute"#),
        ("mtime = 'now'", r#"2:9: "mtime" cannot be "now": there is no such choice"#),
    ] {
        let error = parse(&format!("[tasks.t]\n{lines}")).unwrap_err();
        assert_eq!(error.to_string(), format!("vout.toml:{message}"));
    }
    for (lines, at) in [
        ("size_max = '10 elephants'", "2:12"),
        ("size_max = 10", "2:12"),
        ("size_max = '0 GiB'", "2:12"),
        ("age_max = '30'", "2:11"),
        ("entries_per_task_max = 0", "2:24"),
        ("entries_per_task_max = -1", "2:24"),
        ("entries_per_task_max = 5_000_000_000", "2:24"),
        ("store = '~/x'", "2:9"),
        ("store = ''", "2:9"),
    ] {
        let error = parse(&format!("[cache]\n{lines}")).unwrap_err();
        assert!(error.to_string().starts_with(&format!("vout.toml:{at}: ")), "{lines}: {error}");
    }
    refused("tasks = 3", r#"vout.toml:1:9: "tasks" must be a table, not an integer"#, None);
    refused("tasks.t = 3", r#"vout.toml:1:11: "t" must be a table, not an integer"#, None);
}

#[test]
fn hints_come_with_patterns_and_choices() {
    let hint = |lines: &str| parse(&format!("[tasks.t]\n{lines}")).unwrap_err().hint.unwrap_or_default();
    assert_eq!(hint("mtime = 'preseve'"), r#"did you mean "preserve"?"#);
    assert_eq!(hint("mtime = 'x'"), r#"it can be "shift" or "preserve""#);
    assert!(hint("input = ['**.ts']").contains("'**/*.ts'"));
    assert!(hint("input = ['auto']").contains("{ auto = true }"));
}

#[test]
fn names_that_could_be_confused_are_refused() {
    for (name, problem) in [
        ("", "it is empty"),
        ("-x", "it would be taken for an option"),
        (" a", "it starts or ends with a space"),
        ("a\\nb", "it has control characters"),
    ] {
        let text = format!("\n[tasks.\"{name}\"]\ncommand = 'x'");
        let error = parse(&text).unwrap_err();
        assert!(error.to_string().ends_with(problem), "{error}");
        assert_eq!((error.line, error.column), (2, 8));
    }
}

#[test]
fn dependencies_must_exist_and_have_no_cycle() {
    refused(
        "[tasks.build]\ncommand = 'x'\ndepends_on = ['gen', 'biuld-lib']\n[tasks.gen]\ncommand = 'x'\n[tasks.build-lib]\ncommand = 'x'",
        r#"vout.toml:3:22: task "build" depends on "biuld-lib", which is not a task"#,
        Some(r#"did you mean "build-lib"?"#),
    );
    refused(
        "[tasks]\nz = { command = 'x', depends_on = ['a'] }\na = { command = 'x', depends_on = ['b'] }\nb = { command = 'x', depends_on = ['a'] }",
        "vout.toml:4:36: tasks depend on each other: a -> b -> a",
        None,
    );
    refused("tasks.a.depends_on = ['a']", "vout.toml:1:23: tasks depend on each other: a -> a", None);
    refused(
        "[tasks.a]\ncache = true",
        r#"vout.toml:1:8: task "a" has neither a command nor anything it depends on"#,
        Some("add command = \"…\""),
    );
}

#[test]
fn columns_count_characters_and_lines_may_end_in_crlf() {
    let error = parse("[tasks.a]\r\ncommand = 'x'\r\nenv = ['éé', 3]").unwrap_err();
    assert_eq!((error.line, error.column), (3, 14));
}

#[test]
fn syntax_errors_have_a_place() {
    let error = parse("[tasks.a]\ncommand = \n").unwrap_err();
    assert!(matches!(*error.problem, ConfigProblem::Syntax(_)), "{error}");
    assert_eq!(error.line, 2);
    let error = parse("[tasks.a]\ncommand = 'a'\ncommand = 'b'").unwrap_err();
    assert!(matches!(*error.problem, ConfigProblem::Syntax(_)), "{error}");
    assert_eq!((error.line, error.column), (3, 1));
}

#[test]
fn nesting_without_end_is_refused() {
    for text in
        ["[".repeat(100_000), "a=".to_owned() + &"[".repeat(100_000), "a".to_owned() + &".a".repeat(100_000)]
    {
        assert!(parse(&text).is_err());
    }
}

#[test]
fn command_line_filters_know_auto_and_negatives() {
    let cwd = RelPath::new("sub").unwrap();
    let filter = |items: &[&str]| {
        let items: Vec<String> = items.iter().map(ToString::to_string).collect();
        parse_cli_filter(&items, cwd).map(|spec| spec.0)
    };
    assert_eq!(filter(&[]).unwrap(), [FilterItem::Auto]);
    assert_eq!(filter(&["auto", "!dist"]).unwrap(), [FilterItem::Auto, negative("sub/dist")]);
    assert_eq!(filter(&["!dist"]).unwrap(), [FilterItem::Auto, negative("sub/dist")]);
    assert_eq!(filter(&["../a/*.c", "./auto"]).unwrap(), [glob("a/*.c"), glob("sub/auto")]);
    assert!(filter(&["../../x"]).is_err());
    assert!(filter(&[""]).is_err());
}

/// Lines that together make many different, mostly broken, files.
fn any_line() -> impl Strategy<Value = String> {
    let key = prop::sample::select(vec![
        "command",
        "cwd",
        "depends_on",
        "env",
        "untracked_env",
        "input",
        "output",
        "cache",
        "clean",
        "mtime",
        "discard_on_failure",
        "store",
        "size_max",
        "age_max",
        "entries_per_task_max",
        "pattern",
        "tasks",
        "é",
    ]);
    let value = prop::sample::select(vec![
        "'x'",
        "''",
        "['a', 'b']",
        "[]",
        "true",
        "3",
        "0x1f",
        "1e9",
        "'../..'",
        "['!a', {auto = true}]",
        "'10 GiB'",
        "[{ pattern = 'a{b', base = 'cwd' }]",
        "'shift'",
        "1979-05-27",
        "{ a = 1 }",
        "[[[]]]",
        "'\u{feff}é'",
        "\"",
    ]);
    prop_oneof![
        3 => (key, value).prop_map(|(key, value)| format!("{key} = {value}")),
        1 => prop::sample::select(vec!["[tasks.a]", "[tasks.b]", "[cache]", "[tasks]", "[[tasks]]", "[tasks.'-']", "#"])
            .prop_map(str::to_owned),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_text_makes_it_panic(
        text in "\\PC*",
        lines in prop::collection::vec(any_line(), 0..12),
        odd in "[\\[\\]{}=.,'\"a\n#\\\\ é]{0,30}",
    ) {
        for text in [text, lines.join("\n"), odd, format!("[tasks.a]\n{}", lines.join("\r\n"))] {
            if let Err(error) = parse(&text) {
                prop_assert!(error.line <= text.split('\n').count(), "{}", error);
                prop_assert!(error.column <= text.chars().count() + 1, "{}", error);
            }
        }
    }
}
