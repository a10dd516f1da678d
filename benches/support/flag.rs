//! Flags of a bench that is a plain program.

/// The value behind a flag of the command line, or the default where the flag is not given; `cargo bench` adds flags of
/// its own, which are passed over. A value that is none ends the program: a bench of something else would mislead.
pub fn flag<T: std::str::FromStr>(name: &str, default: T) -> T {
    let mut words = std::env::args().skip_while(|word| word != name);
    if words.next().is_none() {
        return default;
    }
    let value = words.next().unwrap_or_default();
    value.parse().unwrap_or_else(|_| {
        eprintln!("error: {value:?} is no value for {name}");
        std::process::exit(2)
    })
}
