//! The kernel sources of this crate, and how a source is put together with the headers it includes.

use std::collections::HashSet;

/// A file that sources include: its name and its text.
pub type Header = (&'static str, &'static str);

/// A CUDA C++ source.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// The name of the file.
    pub name: &'static str,
    /// The names of the kernels in it.
    pub kernels: &'static [&'static str],
    text: &'static str,
    headers: &'static [Header],
}

impl Source {
    /// A source that includes `headers` and those of this crate.
    #[must_use]
    pub const fn new(
        name: &'static str,
        kernels: &'static [&'static str],
        text: &'static str,
        headers: &'static [Header],
    ) -> Self {
        Self { name, kernels, text, headers }
    }

    /// The source with the text of all that it includes, each file once. Lines are numbered as in the files.
    #[must_use]
    pub fn expanded(&self) -> String {
        let mut whole = String::new();
        self.append(self.name, self.text, &mut Vec::new(), &mut whole);
        whole
    }

    /// Those of `defines` (`-DNAME=VALUE`) whose names the expanded source `text` has as a word. The others cannot change what is
    /// compiled, so a kernel that knows nothing of heads is compiled once for models of all heads.
    #[must_use]
    pub fn defines_used(text: &str, defines: &[String]) -> Vec<String> {
        let words: HashSet<&str> = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
        let used = |define: &&String| {
            let name = define.strip_prefix("-D").and_then(|rest| rest.split('=').next());
            name.is_none_or(|name| words.contains(name))
        };
        defines.iter().filter(used).cloned().collect()
    }

    fn append(&self, name: &str, text: &str, done: &mut Vec<&'static str>, whole: &mut String) {
        whole.push_str(&format!("#line 1 \"{name}\"\n"));
        for (number, line) in (2..).zip(text.lines()) {
            let included = line.strip_prefix("#include <").and_then(|rest| rest.strip_suffix('>'));
            let header = included.and_then(|wanted| {
                self.headers.iter().chain(HEADERS).find(|header| header.0 == wanted).copied()
            });
            match header {
                Some((header, text)) => {
                    if !done.contains(&header) {
                        done.push(header);
                        self.append(header, text, done, whole);
                        whole.push_str(&format!("#line {number} \"{name}\"\n"));
                        continue;
                    }
                }
                None if line == "#pragma once" => {}
                None => whole.push_str(line),
            }
            whole.push('\n');
        }
    }
}

macro_rules! header {
    ($name:literal) => {
        ($name, include_str!(concat!("../../cuda/", $name)))
    };
}

/// The headers that sources of any crate may include.
pub const HEADERS: &[Header] = &[
    header!("ptx.cuh"),
    header!("types.cuh"),
    header!("reduce.cuh"),
    header!("tile.cuh"),
    header!("softmax.cuh"),
    header!("kv_layout.cuh"),
];

/// The sources of this crate.
pub const SOURCES: &[Source] = &[
    Source::new(
        "attention.cu",
        &["attention_16", "attention_32", "attention_64"],
        include_str!("../../cuda/attention.cu"),
        &[],
    ),
    Source::new("copy_blocks.cu", &["copy_blocks"], include_str!("../../cuda/copy_blocks.cu"), &[]),
    Source::new("rope_cache.cu", &["rope_cache"], include_str!("../../cuda/rope_cache.cu"), &[]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_include_is_filled_in_once() {
        for source in SOURCES {
            let whole = source.expanded();
            assert!(!whole.contains("#include") && !whole.contains("#pragma once"), "{}", source.name);
            assert_eq!(whole.matches("struct alignas(16) Chunk").count(), 1, "{}", source.name);
            for kernel in source.kernels.iter().filter(|kernel| !kernel.starts_with("attention_")) {
                assert!(whole.contains(&format!("{kernel}(")), "{kernel}");
            }
        }
    }

    #[test]
    fn a_source_is_given_the_macros_that_it_names_and_options_that_are_no_macros() {
        let defines = ["-DACT=bf16", "-DHEADS=4", "-DKV_HEADS=2", "--ptxas-options=-v"].map(str::to_owned);
        let used = |text: &str| Source::defines_used(text, &defines);
        assert_eq!(
            used("u32 n = KV_HEADS * 2; ACT *x;"),
            ["-DACT=bf16", "-DKV_HEADS=2", "--ptxas-options=-v"]
        );
        assert_eq!(used("nothing"), ["--ptxas-options=-v"]);
        for source in SOURCES.iter().filter(|source| source.name != "copy_blocks.cu") {
            assert_eq!(Source::defines_used(&source.expanded(), &defines), defines, "{}", source.name);
        }
    }

    #[test]
    fn lines_keep_their_numbers() {
        for source in SOURCES {
            let mut here = (String::new(), 0usize);
            let mut checked = 0;
            for line in source.expanded().lines() {
                if let Some((number, file)) = line.strip_prefix("#line ").and_then(|l| l.split_once(' ')) {
                    here = (file.trim_matches('"').to_owned(), number.parse().unwrap());
                    continue;
                }
                if here.0 == source.name && !line.is_empty() {
                    assert_eq!(source.text.lines().nth(here.1 - 1), Some(line), "{} {}", here.0, here.1);
                    checked += 1;
                }
                here.1 += 1;
            }
            assert!(checked > 10);
        }
    }
}
