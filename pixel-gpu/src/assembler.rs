//! PTX to machine code and back to text, by NVIDIA's tools, which need no device.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// NVIDIA's assembler and disassembler.
#[derive(Debug, Clone)]
pub struct Tools {
    ptxas: PathBuf,
    nvdisasm: PathBuf,
}

/// What the assembler says of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Resources {
    /// Registers of a thread.
    pub registers: usize,
    /// Bytes that a thread writes to memory for want of registers, and reads again.
    pub spills: usize,
    /// Bytes of local memory of a thread: spills, and arrays whose place is not known when it is compiled.
    pub stack: usize,
    /// Bytes of shared memory of a block, those that a launch asks for not included.
    pub shared: usize,
}

impl Tools {
    /// Those in `folder`, or those that are found where programs are.
    ///
    /// # Errors
    /// If one of them is missing.
    pub fn find(folder: Option<&Path>) -> Result<Self> {
        let find = |name: &str| -> Result<PathBuf> {
            let folders: Vec<PathBuf> = match folder {
                Some(folder) => vec![folder.to_owned()],
                None => env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect(),
            };
            let found = folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
            found.with_context(|| format!("{name} is not in {folders:?}: scripts/cuda-tools.sh fetches it"))
        };
        Ok(Self { ptxas: find("ptxas")?, nvdisasm: find("nvdisasm")? })
    }

    /// Assembles `ptx` for the device that it was compiled for: what the kernel takes, and its code as text.
    ///
    /// # Errors
    /// If it cannot be read, and what the assembler says.
    pub fn assemble(&self, ptx: &Path) -> Result<(Resources, String)> {
        let text = fs::read_to_string(ptx).with_context(|| ptx.display().to_string())?;
        let target = text
            .lines()
            .find_map(|line| line.trim().strip_prefix(".target "))
            .and_then(|rest| rest.split([',', ' ']).next());
        let target = target.with_context(|| format!("{} names no target", ptx.display()))?;
        let code = ptx.with_extension("cubin");
        let assembled = Command::new(&self.ptxas)
            .args(["-v", "-arch", target, "-o"])
            .args([&code, ptx])
            .output()
            .with_context(|| self.ptxas.display().to_string())?;
        let said = String::from_utf8_lossy(&assembled.stderr) + String::from_utf8_lossy(&assembled.stdout);
        ensure!(assembled.status.success(), "{}: {said}", ptx.display());
        let listed = Command::new(&self.nvdisasm).arg(&code).output();
        let listed = listed.with_context(|| self.nvdisasm.display().to_string())?;
        ensure!(listed.status.success(), "{}: {}", code.display(), String::from_utf8_lossy(&listed.stderr));
        Ok((Resources::parse(&said), String::from_utf8_lossy(&listed.stdout).into_owned()))
    }
}

impl Resources {
    /// From what `ptxas -v` prints.
    fn parse(said: &str) -> Self {
        let before = |what: &str| {
            let numbers =
                said.match_indices(what).filter_map(|(at, _)| said[..at].trim_end().rsplit([' ', '\t']).next());
            numbers.filter_map(|number| number.parse::<usize>().ok()).sum()
        };
        Self {
            registers: before(" registers"),
            spills: before(" bytes spill stores") + before(" bytes spill loads"),
            stack: before(" bytes stack frame"),
            shared: before(" bytes smem"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_assemblers_words_are_understood() {
        let said = "ptxas info    : 0 bytes gmem\n\
                    ptxas info    : Compiling entry function 'k' for 'sm_90'\n\
                    ptxas info    : Function properties for k\n    \
                    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n\
                    ptxas info    : Used 40 registers, used 1 barriers, 8192 bytes smem\n";
        let expected = Resources { registers: 40, spills: 20, stack: 16, shared: 8192 };
        assert_eq!(Resources::parse(said), expected);
    }
}
