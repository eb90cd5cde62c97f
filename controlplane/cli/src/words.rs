//! `dwcpctl completions`, `man`: the command line for shells and for readers; need no control plane.
//!
//! In: a shell, or a folder. Out: a script on standard output, or manual pages in the folder. Promise: both are made of
//! the command line itself, so they say what this program takes.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;
use crate::exit::Exit;
use crate::say;

/// `dwcpctl completions SHELL`
pub fn completions(shell: Shell) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "dwcpctl", &mut script);
    say::result(format_args!("{}", String::from_utf8_lossy(&script)));
    Exit::Done
}

/// `dwcpctl man FOLDER`
pub fn man(folder: &Path) -> Exit {
    let written = std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), folder));
    match written {
        Ok(()) => {
            say::aside(format_args!(
                "manual pages are in {}: man -l {0}/dwcpctl.1",
                folder.display()
            ));
            Exit::Done
        }
        Err(error) => {
            say::aside(format_args!(
                "dwcpctl: cannot write manual pages to {}: {error}; name a folder that you may write to",
                folder.display()
            ));
            Exit::Failed
        }
    }
}
