//! "Did you mean": the valid name nearest to a mistyped one.

/// Returns the candidate nearest to `name`, if one is near enough to be what was meant.
///
/// Case, `-` and `_` make no difference; of equally near ones the first is taken.
pub(crate) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let folded = fold(name);
    let near = candidates.into_iter().map(|candidate| (distance(&folded, &fold(candidate)), candidate));
    let (distance, candidate) = near.min_by_key(|&(distance, _)| distance)?;
    // One slip in three characters; any more and it is another word.
    (distance <= folded.len().max(fold(candidate).len()).div_ceil(3)).then_some(candidate)
}

fn fold(name: &str) -> Vec<char> {
    name.chars()
        .filter(|c| !matches!(c, '-' | '_'))
        .flat_map(char::to_lowercase)
        .take(NAME_CHARS_MAX)
        .collect()
}

/// Characters of a name that are compared, so that a huge one costs nothing.
const NAME_CHARS_MAX: usize = 64;

/// Returns how many insertions, deletions, replacements and swaps of neighbours lead from `a` to `b`.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            if i == 0 || j == 0 {
                rows[i][j] = i + j;
                continue;
            }
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn slips_are_recognised_and_other_words_are_not() {
        let keys = ["command", "cwd", "depends_on", "env", "output"];
        for (typed, meant) in [
            ("comand", Some("command")),
            ("dependsOn", Some("depends_on")),
            ("depends-on", Some("depends_on")),
            ("outputs", Some("output")),
            ("ouptut", Some("output")),
            ("ENV", Some("env")),
            ("cdw", Some("cwd")),
            ("timeout_ms", None),
            ("", None),
        ] {
            assert_eq!(nearest(typed, keys), meant, "{typed}");
        }
        assert_eq!(nearest("x", []), None);
    }
}
