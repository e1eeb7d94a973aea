//! The daemon: all of it is the `vout_mountd` library; here it only gets a name.
fn main() -> std::process::ExitCode {
    vout_mountd::main()
}
