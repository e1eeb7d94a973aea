//! Words of a command that holds no shell syntax.

/// Returns the words of `text` as a POSIX shell splits them, or `None` where it holds anything that is for
/// a shell to interpret, or to refuse.
pub(super) fn split(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    // `None` between words; a quoted empty word is `Some("")`.
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' => words.extend(word.take()),
            '\'' => single_quoted(&mut chars, word.get_or_insert_default())?,
            '"' => double_quoted(&mut chars, word.get_or_insert_default())?,
            // A line continuation, or a backslash at the end: rare enough for the shell.
            '\\' => word.get_or_insert_default().push(chars.next().filter(|&c| c != '\n' && c != '\0')?),
            '#' | '~' if word.is_none() => return None,
            '|' | '&' | ';' | '<' | '>' | '(' | ')' | '$' | '`' | '*' | '?' | '[' | '{' | '}' | '\n'
            | '\0' => {
                return None;
            }
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Some(words)
}

fn single_quoted(chars: &mut std::str::Chars<'_>, word: &mut String) -> Option<()> {
    loop {
        match chars.next()? {
            '\'' => return Some(()),
            '\0' => return None,
            c => word.push(c),
        }
    }
}

fn double_quoted(chars: &mut std::str::Chars<'_>, word: &mut String) -> Option<()> {
    loop {
        match chars.next()? {
            '"' => return Some(()),
            '$' | '`' | '\0' => return None,
            '\\' => match chars.next()? {
                c @ ('$' | '`' | '"' | '\\') => word.push(c),
                '\n' | '\0' => return None,
                c => word.extend(['\\', c]),
            },
            c => word.push(c),
        }
    }
}
