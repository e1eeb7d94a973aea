//! The programs that a command starts, as far as its text tells.

use super::{SHELL, SHELL_WORDS, is_assignment};
use crate::task::CommandLine;

/// Deepest `$(…)` within another that is looked into.
const NESTING_MAX: usize = 16;

/// Programs that start the program named by their arguments.
const LAUNCHERS: &[&str] = &["env", "nohup"];

/// Words of the shell that a command may follow at once.
const INTRODUCTIONS: &[&str] =
    &["!", "command", "do", "elif", "else", "exec", "if", "then", "time", "until", "while", "{"];

/// Returns the names of the programs that `command` starts, each once, in order of appearance.
///
/// For a shell that is the shell itself and the first word of each simple command, also within `$(…)`.
/// Names that only the shell can work out (`$CC`), and its own commands, are left out.
#[must_use]
pub fn program_words(command: &CommandLine) -> Vec<String> {
    let mut programs = Programs::default();
    match command {
        CommandLine::Direct(argv) => {
            for word in argv {
                // A name that is not UTF-8 cannot be named here; the task runs all the same.
                programs.word(std::str::from_utf8(word).ok());
                if !programs.expecting {
                    break;
                }
            }
        }
        CommandLine::Shell(text) => {
            programs.found.push(SHELL.to_owned());
            Scanner { chars: text.chars().peekable(), programs: &mut programs, depth: 0 }.commands(None);
        }
    }
    programs.found
}

/// Sees words go by and keeps those in command position.
struct Programs {
    found: Vec<String>,
    expecting: bool,
    launched: bool,
}

impl Default for Programs {
    fn default() -> Self {
        Self { found: Vec::new(), expecting: true, launched: false }
    }
}

impl Programs {
    /// Takes the next word; `None` for one whose value the text does not tell.
    fn word(&mut self, word: Option<&str>) {
        if !self.expecting {
            return;
        }
        let Some(word) = word.filter(|word| !word.is_empty()) else {
            self.expecting = false;
            return;
        };
        if is_assignment(word) || INTRODUCTIONS.contains(&word) || (self.launched && word.starts_with('-')) {
            return;
        }
        self.launched = LAUNCHERS.contains(&word);
        self.expecting = self.launched;
        if !SHELL_WORDS.contains(&word) && !self.found.iter().any(|found| found == word) {
            self.found.push(word.to_owned());
        }
    }

    fn new_command(&mut self) {
        self.expecting = true;
        self.launched = false;
    }
}

struct Scanner<'a> {
    chars: std::iter::Peekable<std::str::Chars<'a>>,
    programs: &'a mut Programs,
    depth: usize,
}

/// A word being read.
#[derive(Default)]
struct Word {
    text: String,
    /// Whether anything of it was seen, if only quotes.
    begun: bool,
    /// Whether a part of it is for the shell to work out.
    unknown: bool,
}

impl Scanner<'_> {
    /// Reads commands up to `end`, or the end of the text.
    fn commands(&mut self, end: Option<char>) {
        let mut word = Word::default();
        self.programs.new_command();
        while let Some(c) = self.chars.next() {
            if Some(c) == end {
                break;
            }
            match c {
                ' ' | '\t' => self.end_word(&mut word),
                '\n' | ';' | '|' | '&' | '(' | ')' => {
                    self.end_word(&mut word);
                    self.programs.new_command();
                }
                '#' if !word.begun => self.skip_line(),
                '<' | '>' => {
                    // A number in front is a descriptor.
                    if !word.text.bytes().all(|b| b.is_ascii_digit()) {
                        self.end_word(&mut word);
                    }
                    word = Word::default();
                    if !self.redirection() {
                        return;
                    }
                }
                _ => self.word_char(c, &mut word),
            }
        }
        self.end_word(&mut word);
    }

    fn end_word(&mut self, word: &mut Word) {
        let word = std::mem::take(word);
        if word.begun {
            self.programs.word((!word.unknown).then_some(word.text.as_str()));
        }
    }

    fn skip_line(&mut self) {
        while self.chars.next_if(|&c| c != '\n').is_some() {}
    }

    /// Skips a redirection's target. Returns `false` for a here-document: what follows is no command.
    fn redirection(&mut self) -> bool {
        let here_document = self.chars.next_if_eq(&'<').is_some();
        while self.chars.next_if(|c| "<>&| \t".contains(*c)).is_some() {}
        let mut target = Word::default();
        while let Some(c) = self.chars.next_if(|c| !" \t\n;|&()<>".contains(*c)) {
            self.word_char(c, &mut target);
        }
        !here_document
    }

    /// Takes a character that is part of a word, and what belongs to it.
    fn word_char(&mut self, c: char, word: &mut Word) {
        word.begun = true;
        match c {
            '\'' => word.text.extend(self.chars.by_ref().take_while(|&c| c != '\'')),
            '"' => {
                while let Some(c) = self.chars.next().filter(|&c| c != '"') {
                    match c {
                        '\\' => word.text.extend(self.chars.next()),
                        '$' | '`' => self.expansion(c, word),
                        _ => word.text.push(c),
                    }
                }
            }
            '\\' => word.text.extend(self.chars.next().filter(|&c| c != '\n')),
            '$' | '`' => self.expansion(c, word),
            '*' | '?' | '[' | '~' => {
                word.unknown = true;
                word.text.push(c);
            }
            _ => word.text.push(c),
        }
    }

    fn nested(&mut self, end: char) {
        if self.depth == NESTING_MAX {
            return;
        }
        self.depth += 1;
        let (expecting, launched) = (self.programs.expecting, self.programs.launched);
        self.commands(Some(end));
        (self.programs.expecting, self.programs.launched) = (expecting, launched);
        self.depth -= 1;
    }

    /// Takes `$…` or a command in backticks; the commands within are read in their own right.
    fn expansion(&mut self, c: char, word: &mut Word) {
        word.unknown = true;
        if c == '`' {
            self.nested('`');
        } else if self.chars.next_if_eq(&'(').is_some() {
            if self.chars.next_if_eq(&'(').is_some() {
                // Arithmetic starts nothing. Its first `)` may not be its end, but what is taken for a
                // command then starts with an operator.
                self.chars.by_ref().take_while(|&c| c != ')').for_each(drop);
            } else {
                self.nested(')');
            }
        } else if self.chars.next_if_eq(&'{').is_some() {
            self.chars.by_ref().take_while(|&c| c != '}').for_each(drop);
        }
    }
}
