use std::process::Command;

use proptest::prelude::*;

use super::*;

fn direct(words: &[&str]) -> CommandLine {
    CommandLine::Direct(words.iter().map(|word| ByteBuf::from(word.as_bytes())).collect())
}

fn programs(text: &str) -> Vec<String> {
    program_words(&CommandLine::parse(text))
}

#[test]
fn plain_words_run_directly() {
    for (text, words) in [
        ("make -j2", vec!["make", "-j2"]),
        ("  cc\t-o  out a.c ", vec!["cc", "-o", "out", "a.c"]),
        (r#"node -e "a 'b' \" \\ \x""#, vec!["node", "-e", r#"a 'b' " \ \x"#]),
        (r"a\ b'c d'\'e", vec!["a bc d'e"]),
        ("x '' \"\"", vec!["x", "", ""]),
        ("x --define=a=b y~ a#b 'a\nb' é", vec!["x", "--define=a=b", "y~", "a#b", "a\nb", "é"]),
        ("./run.sh %1 a,b @x ^ ] =", vec!["./run.sh", "%1", "a,b", "@x", "^", "]", "="]),
    ] {
        assert_eq!(CommandLine::parse(text), direct(&words), "{text}");
    }
}

#[test]
fn anything_a_shell_interprets_goes_to_the_shell() {
    for text in [
        "a | b",
        "a && b",
        "a || b",
        "a; b",
        "a &",
        "a > b",
        "a < b",
        "a 2>&1",
        "a $X",
        "a \"$X\"",
        "a `b`",
        "a \"`b`\"",
        "a *.c",
        "a b?",
        "a [b]",
        "a {b,c}",
        "(a)",
        "cd x",
        "export A=1",
        "A=1 make",
        "A+=1 make",
        "exit 1",
        "source x",
        ". x",
        "~/bin/x",
        "a ~",
        "a # comment",
        "a\nb",
        "a \\\nb",
        "! a",
        "if a",
        "'cd' x",
        "echo -n x",
        "'unfinished",
        "\"unfinished",
        "a \\",
        "'' x",
        "",
        "  ",
        "a \0",
    ] {
        assert_eq!(CommandLine::parse(text), CommandLine::Shell(text.to_owned()), "{text:?}");
    }
}

#[test]
fn several_arguments_are_words_and_one_is_text() {
    let args = |args: &[&str]| CommandLine::from_args(&args.iter().map(OsString::from).collect::<Vec<_>>());
    assert_eq!(args(&["echo", "a b", "$X"]), Some(direct(&["echo", "a b", "$X"])));
    assert_eq!(args(&["make all"]), Some(direct(&["make", "all"])));
    assert_eq!(args(&["a && b"]), Some(CommandLine::Shell("a && b".into())));
    assert_eq!(args(&["make"]), Some(direct(&["make"])));
    assert_eq!(args(&[]), None);
    assert_eq!(args(&[""]), None);
}

#[test]
fn names_the_programs_of_a_direct_command() {
    assert_eq!(programs("make -j2 cc"), ["make"]);
    assert_eq!(programs("env -i CC=gcc make all"), ["env", "make"]);
    assert_eq!(programs("nohup env A=1 make"), ["nohup", "env", "make"]);
}

#[test]
fn names_the_programs_of_a_shell_command() {
    for (text, expected) in [
        ("tsc -b && vite build", vec!["tsc", "vite"]),
        ("cc a.c -o a || exit 1; ./a | sort > out", vec!["cc", "./a", "sort"]),
        ("CC=clang X=\"a b\" make", vec!["make"]),
        ("cd sub && exec make", vec!["make"]),
        ("for f in *.c; do gcc -c $f; done", vec!["gcc"]),
        ("if test -f x; then rm x; else touch x; fi", vec!["rm", "touch"]),
        ("echo \"$(git rev-parse HEAD)\" > rev", vec!["git"]),
        ("echo `date` && $CC a.c", vec!["date"]),
        ("gcc $(pkg-config --cflags x) a.c | tee log", vec!["gcc", "pkg-config", "tee"]),
        (">log 2>&1 make all", vec!["make"]),
        ("make 2>err >out all; ls", vec!["make", "ls"]),
        ("echo $((1 + 2)) && ls # and nothing else; make", vec!["ls"]),
        ("(a; b) & { c; }", vec!["a", "b", "c"]),
        ("cat <<EOF\nnot a command\nEOF\n", vec!["cat"]),
        ("'my tool' x; \"other\"\nthird", vec!["my tool", "other", "third"]),
        ("diff <(sort a) <(uniq b)", vec!["diff", "sort", "uniq"]),
        ("echo ${X:-a b}; ls", vec!["ls"]),
        ("! grep -q x y", vec!["grep"]),
    ] {
        let expected: Vec<_> = [SHELL].into_iter().chain(expected).collect();
        assert_eq!(programs(text), expected, "{text}");
    }
}

#[test]
fn deep_nesting_ends() {
    let text = "$(".repeat(100_000) + "x";
    assert_eq!(programs(&text)[0], SHELL);
}

/// Asks a real shell for the words of each text.
fn shell_words(texts: &[String]) -> Vec<Vec<Vec<u8>>> {
    // Text ends behind a newline, so that a trailing comment or backslash cannot take the next one along.
    let script: String =
        texts.iter().map(|text| format!("printf '%s\\0' {text}\nprintf '\\1\\0'\n")).collect();
    let output = Command::new(SHELL).args(["-c", &script]).output().unwrap();
    let mut all = vec![Vec::new()];
    for word in output.stdout.split_inclusive(|&b| b == 0) {
        match word {
            b"\x01\0" => all.push(Vec::new()),
            [word @ .., 0] => all.last_mut().unwrap().push(word.to_vec()),
            _ => panic!("no NUL at the end: {word:?}"),
        }
    }
    all.pop();
    all
}

fn argv(command: CommandLine) -> Option<Vec<Vec<u8>>> {
    match command {
        CommandLine::Direct(argv) => Some(argv.into_iter().map(ByteBuf::into_vec).collect()),
        CommandLine::Shell(_) => None,
    }
}

#[derive(Debug, Clone, Copy)]
enum Quoting {
    Single,
    Double,
    Backslash,
}

fn quoted(text: &str, quoting: Quoting) -> String {
    match quoting {
        Quoting::Single => format!("'{}'", text.replace('\'', r"'\''")),
        Quoting::Double => {
            let escaped =
                text.chars().flat_map(|c| "$`\"\\".contains(c).then_some('\\').into_iter().chain([c]));
            format!("\"{}\"", escaped.collect::<String>())
        }
        Quoting::Backslash => text.chars().filter(|&c| c != '\n').flat_map(|c| ['\\', c]).collect(),
    }
}

fn any_word() -> impl Strategy<Value = Vec<(String, Quoting)>> {
    let quoting = prop::sample::select(vec![Quoting::Single, Quoting::Double, Quoting::Backslash]);
    prop::collection::vec(("[ -~\té\n]{0,6}", quoting), 1..3)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Whatever runs directly has the words that the shell would have given it.
    #[test]
    fn words_are_those_of_the_shell(
        texts in prop::collection::vec("[ab=\t '\"\\\\#~$*-]{1,12}|[ -~]{1,8}|[a-c '\"\\\\]{1,16}", 60)
    ) {
        let (texts, words): (Vec<_>, Vec<_>) = texts
            .into_iter()
            .filter_map(|text| argv(CommandLine::parse(&text)).map(|words| (text, words)))
            .unzip();
        let shell = shell_words(&texts);
        prop_assert_eq!(shell.len(), words.len());
        for ((text, ours), theirs) in texts.iter().zip(words).zip(shell) {
            prop_assert_eq!(ours, theirs, "{}", text);
        }
    }

    /// Quoted words need no shell, however they are quoted, and arrive as they were.
    #[test]
    fn quoted_words_run_directly(words in prop::collection::vec(any_word(), 0..5)) {
        let text: String = words.iter().fold("x".to_owned(), |text, pieces| {
            let word: String = pieces.iter().map(|(piece, quoting)| quoted(piece, *quoting)).collect();
            // An empty backslash-quoted word is no word.
            text + " ''" + &word
        });
        let ours = argv(CommandLine::parse(&text));
        prop_assert!(ours.is_some(), "{}", text);
        prop_assert_eq!(ours, Some(shell_words(std::slice::from_ref(&text)).remove(0)));
    }

    #[test]
    fn what_is_displayed_parses_to_the_same(args in prop::collection::vec("[ -~é\n]{0,8}", 0..5)) {
        let argv: Vec<&str> = ["x"].into_iter().chain(args.iter().map(String::as_str)).collect();
        prop_assert_eq!(CommandLine::parse(&display(&direct(&argv))), direct(&argv));
    }

    #[test]
    fn no_text_makes_it_panic(text in "\\PC*", odd in "[ab='\"\\\\$(){}`<>|&;#\n\0 ]{0,40}") {
        for text in [text, odd] {
            let command = CommandLine::parse(&text);
            let _programs = program_words(&command);
            let _text = display(&command);
            let _programs = program_words(&CommandLine::Shell(text));
        }
    }
}
