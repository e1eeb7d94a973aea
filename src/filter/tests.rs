use proptest::prelude::*;

use super::*;

fn glob(text: &str) -> FilterItem {
    match text.strip_prefix('!') {
        Some(pattern) => FilterItem::Glob { pattern: pattern.to_owned(), negative: true },
        None => FilterItem::Glob { pattern: text.to_owned(), negative: false },
    }
}

fn filter(items: &[&str]) -> Filter {
    let items = items.iter().map(|&item| if item == "auto" { FilterItem::Auto } else { glob(item) });
    Filter::compile(&FilterSpec(items.collect())).unwrap()
}

fn problem(pattern: &str) -> FilterProblem {
    Filter::compile(&FilterSpec(vec![glob(pattern)])).unwrap_err().problem
}

fn path(text: &str) -> &RelPath {
    RelPath::new(text).unwrap()
}

fn matches(pattern: &str, text: &str) -> bool {
    filter(&[pattern]).selects(path(text), false)
}

#[test]
fn negatives_take_away_whatever_the_order() {
    for items in [["auto", "dist", "!**/*.map"], ["!**/*.map", "dist", "auto"]] {
        let filter = filter(&items);
        assert!(filter.selects(path("src/a.js"), true));
        assert!(!filter.selects(path("src/a.js"), false));
        assert!(filter.selects(path("dist/a.js"), false));
        assert!(!filter.selects(path("dist/a.js.map"), false));
        assert!(!filter.selects(path("src/a.js.map"), true));
    }
}

#[test]
fn empty_specification_selects_nothing() {
    let filter = filter(&[]);
    assert!(!filter.auto());
    assert!(!filter.selects(path("a"), true));
    assert!(filter.walk_roots().is_empty());
}

#[test]
fn star_stays_within_a_name_and_double_star_does_not() {
    assert!(matches("src/*.c", "src/a.c"));
    assert!(!matches("src/*.c", "src/lib/a.c"));
    assert!(matches("src/**/*.c", "src/a.c"));
    assert!(matches("src/**/*.c", "src/x/y/a.c"));
    assert!(matches("**", "a/b"));
    assert!(!matches("src/*", "src/x/y"));
    assert!(matches("src/*/", "src/x/y"));
}

#[test]
fn a_directory_stands_for_itself_and_all_below() {
    for pattern in ["dist", "dist/", "dist/**", "{dist,build}", "di[s]t/", "**/dist"] {
        assert!(matches(pattern, "dist"), "{pattern}");
        assert!(matches(pattern, "dist/a/b"), "{pattern}");
        assert!(!matches(pattern, "distant"), "{pattern}");
    }
    assert!(matches("packages/*/dist", "packages/app/dist/a.js"));
    assert!(!matches("*.d", "x.d/below"));
}

#[test]
fn hidden_files_match_like_others() {
    assert!(matches("*", ".env"));
    assert!(matches("**/*", "a/.git/config"));
    assert!(matches("?env", ".env"));
}

#[test]
fn names_that_are_not_utf8_match() {
    let odd = RelPath::new(b"d/a\xff\xfeb.o").unwrap();
    for pattern in ["d/*.o", "d/a??b.o", "d", "d/a[!x][!y]b.o"] {
        assert!(filter(&[pattern]).selects(odd, false), "{pattern}");
    }
    assert!(!filter(&["d/a?b.o"]).selects(odd, false));
}

#[test]
fn a_character_of_several_bytes_is_one_character() {
    assert!(matches("?.txt", "é.txt"));
    assert!(matches("[à-ü].txt", "é.txt"));
    assert!(matches("[!a].txt", "é.txt"));
    assert!(!matches("??.txt", "é.txt"));
    assert!(matches("*é*", "caféx"));
}

#[test]
fn classes_and_escapes_follow_the_shell() {
    assert!(matches("[a-c]x", "bx"));
    assert!(!matches("[!a-c]x", "bx"));
    assert!(!matches("a[!b]c", "a/c"));
    assert!(matches("[]]", "]"));
    assert!(matches("[a-]", "-"));
    assert!(matches("[\\]a]", "]"));
    assert!(matches("\\*", "*") && !matches("\\*", "a"));
    assert!(matches("\\!x", "!x"));
    assert!(matches("a\\{b\\,c\\}", "a{b,c}"));
    assert!(matches("[{]a[}]", "{a}"));
}

#[test]
fn braces_nest_and_may_be_empty() {
    let filter = filter(&["{src{,/test},lib}/*.{c,h}"]);
    let globs: Vec<_> = filter.positive_globs().collect();
    assert_eq!(globs, ["src/*.c", "src/*.h", "src/test/*.c", "src/test/*.h", "lib/*.c", "lib/*.h"]);
}

#[test]
fn refuses_what_is_no_pattern() {
    use FilterProblem as P;
    for (pattern, expected) in [
        ("", P::Empty),
        ("/etc/passwd", P::Absolute),
        ("{/etc,a}", P::Absolute),
        ("../x", P::Dots),
        ("a/./b", P::Dots),
        ("{..,a}/b", P::Dots),
        ("\\.\\./b", P::Dots),
        ("a//b", P::EmptyComponent),
        ("a/{,b}/c", P::EmptyComponent),
        ("**.ts", P::DoubleStar),
        ("a/b**", P::DoubleStar),
        ("a[b", P::UnclosedClass),
        ("[]", P::UnclosedClass),
        ("a[/]b", P::HiddenSlash),
        ("a\\/b", P::HiddenSlash),
        ("[z-a]", P::BackwardRange),
        ("{a,b", P::UnclosedBrace),
        ("a}", P::UnopenedBrace),
        ("a\\", P::DanglingEscape),
        ("a\0b", P::Nul),
    ] {
        assert_eq!(problem(pattern), expected, "{pattern:?}");
    }
    assert_eq!(problem(&"{a,b}".repeat(40)), P::TooManyAlternatives);
    assert_eq!(problem(&"{".repeat(4000)), P::UnclosedBrace);
    assert_eq!(problem(&"a/".repeat(100)), P::TooDeep);
    assert_eq!(problem(&"a".repeat(5000)), P::TooLong);
}

#[test]
fn walk_roots_are_the_literal_beginnings_without_those_below_others() {
    let filter = filter(&["src/**/*.c", "src/gen/*.h", "src-x/a.txt", "{x,y}/*", "!x/secret"]);
    let roots: Vec<_> = filter.walk_roots().iter().map(ToString::to_string).collect();
    assert_eq!(roots, ["src", "src-x/a.txt", "x", "y"]);
    assert_eq!(self::filter(&["*.c", "src"]).walk_roots(), [RelPathBuf::root()]);
}

#[test]
fn walk_leaves_out_what_cannot_be_selected() {
    let filter = filter(&["packages/*/src/**/*.ts", "!**/node_modules"]);
    assert!(filter.descends(RelPath::ROOT));
    assert!(filter.descends(path("packages/app")));
    assert!(filter.descends(path("packages/app/src/deep")));
    assert!(!filter.descends(path("packages/app/dist")));
    assert!(!filter.descends(path("packages/app/src/node_modules")));
}

#[test]
fn join_resolves_dots_within_the_workspace_only() {
    let cwd = path("packages/app");
    for (pattern, expected) in [
        ("dist/**", "packages/app/dist/**"),
        ("./dist/", "packages/app/dist/"),
        (".", "packages/app"),
        ("../shared/*", "packages/shared/*"),
        ("../..", "**"),
        ("a/../b", "packages/app/b"),
        ("{a,../b}", "packages/app/{a,../b}"),
    ] {
        assert_eq!(join(cwd, pattern).as_deref(), Ok(expected), "{pattern}");
    }
    assert_eq!(join(path("routes/[id]"), "../x").as_deref(), Ok("routes/x"));
    for (pattern, expected) in [
        ("../../../x", FilterProblem::LeavesWorkspace),
        ("/x", FilterProblem::Absolute),
        ("", FilterProblem::Empty),
        ("*/../x", FilterProblem::Dots),
        ("a//..", FilterProblem::EmptyComponent),
    ] {
        assert_eq!(join(cwd, pattern).unwrap_err().problem, expected, "{pattern}");
    }
}

#[test]
fn join_escapes_the_base() {
    let cwd = RelPath::new(b"a[1]{x,y}*/\xff").unwrap();
    let filter = filter(&[&join(cwd, "*.c").unwrap()]);
    assert!(filter.selects(&cwd.join("m.c".as_ref()), false));
    assert!(!filter.selects(path("a1x/m.c"), false));
}

// A second matcher, slow and obvious: it tries every way to share the names out.

#[derive(Debug, Clone)]
enum Piece {
    Text(char),
    One,
    Run,
    Class(bool, Vec<char>),
}

#[derive(Debug, Clone)]
enum Part {
    Any,
    Name(Vec<Piece>),
}

fn slow_name(pieces: &[Piece], name: &[char]) -> bool {
    match (pieces, name) {
        ([], _) => name.is_empty(),
        ([Piece::Run, rest @ ..], _) => (0..=name.len()).any(|taken| slow_name(rest, &name[taken..])),
        (_, []) => false,
        ([Piece::One, rest @ ..], [_, tail @ ..]) => slow_name(rest, tail),
        ([Piece::Text(c), rest @ ..], [first, tail @ ..]) => c == first && slow_name(rest, tail),
        ([Piece::Class(negated, members), rest @ ..], [first, tail @ ..]) => {
            members.contains(first) != *negated && slow_name(rest, tail)
        }
    }
}

fn slow_path(parts: &[Part], names: &[Vec<char>]) -> bool {
    match (parts, names) {
        ([], _) => names.is_empty(),
        ([Part::Any, rest @ ..], _) => (0..=names.len()).any(|taken| slow_path(rest, &names[taken..])),
        (_, []) => false,
        ([Part::Name(pieces), rest @ ..], [first, tail @ ..]) => {
            slow_name(pieces, first) && slow_path(rest, tail)
        }
    }
}

/// `dir` says that the pattern ends in a slash.
fn slow(parts: &[Part], dir: bool, names: &[Vec<char>]) -> bool {
    let covers = match parts.last() {
        Some(Part::Name(pieces)) => dir || pieces.iter().all(|piece| matches!(piece, Piece::Text(_))),
        Some(Part::Any) | None => false,
    };
    (0..=names.len()).any(|taken| (taken == names.len() || covers) && slow_path(parts, &names[..taken]))
}

fn render(parts: &[Part], dir: bool) -> String {
    let part = |part: &Part| match part {
        Part::Any => "**".to_owned(),
        Part::Name(pieces) => pieces.iter().map(piece).collect(),
    };
    let piece_text = parts.iter().map(part).collect::<Vec<String>>().join("/");
    if dir { piece_text + "/" } else { piece_text }
}

fn piece(piece: &Piece) -> String {
    match piece {
        Piece::Text(c) => c.to_string(),
        Piece::One => "?".into(),
        Piece::Run => "*".into(),
        Piece::Class(negated, members) => {
            format!("[{}{}]", if *negated { "!" } else { "" }, members.iter().collect::<String>())
        }
    }
}

fn any_part() -> impl Strategy<Value = Part> {
    let character = || prop::sample::select(vec!['a', 'b', 'é']);
    let piece = prop_oneof![
        4 => character().prop_map(Piece::Text),
        1 => Just(Piece::One),
        2 => Just(Piece::Run),
        1 => (any::<bool>(), prop::collection::vec(character(), 1..3)).prop_map(|(n, m)| Piece::Class(n, m)),
    ];
    let name = prop::collection::vec(piece, 1..4).prop_map(|mut pieces| {
        pieces.dedup_by(|a, b| matches!((a, b), (Piece::Run, Piece::Run)));
        Part::Name(pieces)
    });
    prop_oneof![1 => Just(Part::Any), 3 => name]
}

fn any_names() -> impl Strategy<Value = Vec<Vec<char>>> {
    let name = prop::collection::vec(prop::sample::select(vec!['a', 'b', 'é']), 1..4);
    prop::collection::vec(name, 0..5)
}

fn to_path(names: &[Vec<char>]) -> RelPathBuf {
    let names: Vec<String> = names.iter().map(|name| name.iter().collect()).collect();
    RelPathBuf::new(names.join("/")).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn matches_what_the_obvious_matcher_matches(
        parts in prop::collection::vec(any_part(), 1..4),
        dir: bool,
        names in prop::collection::vec(any_names(), 1..20),
    ) {
        let text = render(&parts, dir);
        let filter = filter(&[&text]);
        for names in names {
            let path = to_path(&names);
            let selected = filter.selects(&path, false);
            prop_assert_eq!(selected, slow(&parts, dir, &names), "{} on {}", text, path);
            if selected {
                for dir in path.ancestors() {
                    prop_assert!(filter.descends(dir), "{} descends {}", text, dir);
                }
                prop_assert!(filter.walk_roots().iter().any(|root| path.starts_with(root)));
            }
        }
    }

    /// The walk's pruning by negatives never loses a path, and prunes only what nothing is selected below.
    #[test]
    fn descends_wherever_something_is_selected(
        positive in prop::collection::vec(any_part(), 1..4),
        negative in prop::collection::vec(any_part(), 1..4),
        names in prop::collection::vec(any_names(), 1..20),
    ) {
        let negative = format!("!{}", render(&negative, false));
        let filter = filter(&[&render(&positive, false), &negative]);
        for names in names {
            let path = to_path(&names);
            if filter.selects(&path, false) {
                prop_assert!(path.ancestors().all(|dir| filter.descends(dir)), "{}", path);
            }
        }
    }

    /// An independent implementation agrees wherever its rules are the same: ASCII names, no classes, and
    /// patterns that cover nothing below what they match.
    #[test]
    fn agrees_with_globset(pattern in "[ab*?]{1,4}(/([ab?]{1,2}|\\*\\*)){0,2}/[ab]?\\*", text in "[ab]{1,3}(/[ab]{1,3}){0,4}") {
        prop_assume!(!pattern.contains("***"));
        let Ok(filter) = Filter::compile(&FilterSpec(vec![glob(&pattern)])) else { return Ok(()) };
        let theirs = globset::GlobBuilder::new(&pattern).literal_separator(true).build().unwrap();
        let path = path(&text);
        prop_assert_eq!(
            filter.selects(path, false),
            theirs.compile_matcher().is_match(path.as_path()),
            "{} on {}", pattern, path
        );
    }

    #[test]
    fn no_text_makes_it_panic(text in "\\PC*", odd in "[\\[\\]{},*?!\\\\/.a\u{e9}\0-]{0,24}", name in "[a-z\\[{é]{1,5}") {
        for text in [&text, &odd] {
            if let Ok(joined) = join(path("b/c"), text)
                && let Ok(filter) = Filter::compile(&FilterSpec(vec![glob(&joined)]))
            {
                let _selected = filter.selects(path(&name), false);
                let _roots = filter.walk_roots();
            }
        }
    }
}
