//! What a program asks of a CUDA driver, on a machine that has none.

use anyhow::{Context, Result, bail, ensure};
use std::collections::HashMap;
use std::env;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The variable that names the folder of a record.
const FOLDER: &str = "PIXEL_RECORD";

/// A kernel's launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// The place of the kernel in [`Recording::kernels`].
    pub kernel: usize,
    /// Blocks of the grid.
    pub grid: [usize; 3],
    /// Threads of a block.
    pub block: [usize; 3],
    /// Bytes of shared memory of a block.
    pub shared: usize,
}

impl Launch {
    /// Blocks.
    pub fn blocks(&self) -> usize {
        self.grid.iter().product()
    }

    /// Threads of a block.
    pub fn threads(&self) -> usize {
        self.block.iter().product()
    }
}

/// A compiled kernel.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Its name in the code.
    pub name: String,
    /// The file of its PTX.
    pub ptx: PathBuf,
}

/// What was asked between two marks.
#[derive(Debug, Clone, Default)]
pub struct Section {
    /// The mark that begins it.
    pub name: String,
    /// Launches, in order.
    pub launches: Vec<Launch>,
    /// How often the host waited for the device.
    pub waits: usize,
    /// Bytes from the host to the device, and back.
    pub copied: [usize; 2],
}

/// What a program asked of the driver.
#[derive(Debug, Clone, Default)]
pub struct Recording {
    /// The kernels it had compiled.
    pub kernels: Vec<Kernel>,
    /// Its calls, between its [`mark`]s.
    pub sections: Vec<Section>,
}

/// Whether this process runs on the recording driver.
pub fn is_recorded() -> bool {
    env::var_os(FOLDER).is_some()
}

/// Begins a section of the record. All that belongs to the one before must have reached the driver.
///
/// # Errors
/// If the record cannot be written.
pub fn mark(name: &str) -> Result<()> {
    let path = PathBuf::from(env::var_os(FOLDER).context("this process is not recorded")?).join("calls.txt");
    let file = OpenOptions::new().create(true).append(true).open(&path);
    file.and_then(|mut file| file.write_all(format!("mark {name}\n").as_bytes()))
        .with_context(|| path.display().to_string())
}

/// Runs this program again with `arguments`, on the recording driver, as a device of compute capability `sm`; what it
/// asks for lies in `folder` then.
///
/// # Errors
/// If the driver was not built, or the program fails.
pub fn record(arguments: &[String], sm: u32, folder: &Path) -> Result<Recording> {
    let program = env::current_exe().context("the path of this program")?;
    let built =
        program.with_file_name(format!("{}pixel_recording_driver{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX));
    ensure!(
        built.exists(),
        "{} is missing: build the package pixel-recording-driver in the same profile",
        built.display()
    );
    // The name under which programs look for NVIDIA's.
    let libraries = folder.join("driver");
    fs::create_dir_all(&libraries).with_context(|| libraries.display().to_string())?;
    fs::copy(&built, libraries.join("libcuda.so")).with_context(|| built.display().to_string())?;
    let status = Command::new(program)
        .args(arguments)
        .env("LD_LIBRARY_PATH", &libraries)
        .env(FOLDER, folder)
        .env("PIXEL_RECORD_SM", sm.to_string())
        .status()
        .context("this program, on the recording driver")?;
    ensure!(status.success(), "this program failed on the recording driver: {status}");
    Recording::read(folder)
}

impl Recording {
    /// Reads the record in `folder`.
    ///
    /// # Errors
    /// If it is not one.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("calls.txt");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let mut recording = Self::default();
        // Functions by their numbers.
        let mut kernels = HashMap::new();
        for (number, line) in text.lines().enumerate() {
            recording
                .add(line, folder, &mut kernels)
                .with_context(|| format!("{}:{}: \"{line}\"", path.display(), number + 1))?;
        }
        Ok(recording)
    }

    fn add(&mut self, line: &str, folder: &Path, kernels: &mut HashMap<usize, usize>) -> Result<()> {
        let (call, rest) = line.split_once(' ').unwrap_or((line, ""));
        let words: Vec<&str> = rest.split(' ').collect();
        let number = |i: usize| -> Result<usize> {
            words.get(i).and_then(|word| word.parse().ok()).with_context(|| format!("word {} is no number", i + 1))
        };
        match call {
            "mark" => self.sections.push(Section { name: rest.to_owned(), ..Section::default() }),
            "function" => {
                kernels.insert(number(0)?, self.kernels.len());
                let name = words.get(2).context("no name")?;
                self.kernels.push(Kernel { name: (*name).to_owned(), ptx: folder.join(format!("{}.ptx", number(1)?)) });
            }
            "module" | "allocate" | "free" | "copy" => {}
            // What comes before the first mark is the start of the runtime.
            "launch" | "wait" | "upload" | "download" => {
                let Some(section) = self.sections.last_mut() else { return Ok(()) };
                match call {
                    "launch" => section.launches.push(Launch {
                        kernel: *kernels.get(&number(0)?).context("an unknown function")?,
                        grid: [number(1)?, number(2)?, number(3)?],
                        block: [number(4)?, number(5)?, number(6)?],
                        shared: number(7)?,
                    }),
                    "wait" => section.waits += 1,
                    "upload" => section.copied[0] += number(0)?,
                    _ => section.copied[1] += number(0)?,
                }
            }
            _ => bail!("an unknown call"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(calls: &str) -> Result<Recording> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("calls.txt"), calls)?;
        Recording::read(folder.path())
    }

    #[test]
    fn calls_belong_to_the_mark_before_them() {
        let calls = "upload 3\nmark a b\nmodule 1\nfunction 0 1 twice\nlaunch 0 2 3 1 32 4 1 512\nwait\nmark c\n\
                     allocate 12 99\ndownload 8\nupload 2\nlaunch 0 1 1 1 1 1 1 0\nlaunch 0 1 1 1 1 1 1 0\n";
        let recording = read(calls).unwrap();
        assert_eq!(recording.kernels.len(), 1);
        assert!(recording.kernels[0].ptx.ends_with("1.ptx"));
        let [first, second] = &recording.sections[..] else { panic!("{:?}", recording.sections) };
        assert_eq!((first.name.as_str(), first.launches.len(), first.waits), ("a b", 1, 1));
        assert_eq!((first.launches[0].blocks(), first.launches[0].threads(), first.launches[0].shared), (6, 128, 512));
        assert_eq!((second.launches.len(), second.copied), (2, [2, 8]));
    }

    #[test]
    fn a_damaged_record_names_the_line() {
        for (calls, part) in [("mark a\nlaunch 0 1", "calls.txt:2"), ("jump", "unknown call"), ("function x", "word 1")]
        {
            let error = format!("{:#}", read(calls).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
    }
}
