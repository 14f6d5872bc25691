//! The only program of the test guests' images: a few applets, static, without dependencies.
//! Compiled by the tests with plain `rustc`.

use std::io::{IsTerminal, Read, Write};
use std::time::{Duration, SystemTime};

unsafe extern "C" {
    fn fork() -> i32;
    fn getuid() -> u32;
    fn getgid() -> u32;
    fn getppid() -> i32;
    fn ioctl(fd: i32, request: u64, argument: *mut u16) -> i32;
    fn gethostname(name: *mut u8, len: usize) -> i32;
    fn raise(signal: i32) -> i32;
    fn umount2(path: *const std::ffi::c_char, flags: i32) -> i32;
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let argument = |n: usize| args.get(n).map(String::as_str).unwrap_or_default();
    let number = |n: usize| argument(n).parse::<u64>().unwrap_or(0);
    let sleep = |seconds| std::thread::sleep(Duration::from_secs(seconds));
    // Under other names it is a hook, or the image's key generator.
    let applet = match argument(0).rsplit('/').next().unwrap_or_default() {
        "ssh-keygen" => "keygen",
        _ if argument(0).contains("/etc/hearth/") => "hook",
        _ => argument(1),
    };
    match applet {
        // Says who it is, and notes that it ran; `HOOK` in the environment makes it fail or hang.
        "hook" => {
            let own = |name: &str| std::env::var(format!("HEARTH_{name}")).unwrap_or_default();
            let told = format!("{} is {} {} {}", argument(0), own("HOSTNAME"), own("INSTANCE_ID"), own("GENERATION"));
            println!("{told}");
            let mut file = std::fs::File::options().append(true).create(true).open("/tmp/hooks").expect("opened");
            writeln!(file, "{told} {}", std::env::var("GIVEN").unwrap_or_default()).expect("written");
            match std::env::var("HOOK").as_deref() {
                Ok("fails") => std::process::exit(3),
                Ok("hangs") => sleep(1000),
                _ => {}
            }
        }
        "keygen" => {
            let file = args.iter().skip_while(|arg| *arg != "-f").nth(1).expect("a file");
            let random = std::fs::read_to_string("/proc/sys/kernel/random/uuid").expect("read");
            std::fs::write(file, &random).expect("written");
            std::fs::write(format!("{file}.pub"), random).expect("written");
        }
        // The guest's program: says what it sees, and lives until it is told otherwise.
        "program" => {
            // SAFETY: these cannot fail.
            let (uid, gid) = unsafe { (getuid(), getgid()) };
            let dir = std::env::current_dir().expect("a directory");
            println!("program: uid {uid} gid {gid} in {} with A={}", dir.display(), std::env::var("A").unwrap_or_default());
            eprintln!("program: stderr too");
            while std::fs::metadata("/tmp/end").is_err() {
                std::thread::sleep(Duration::from_secs(2));
            }
            std::process::exit(5);
        }
        "echo" => {
            println!("{}", argument(2));
            eprintln!("{}", argument(3));
        }
        "cat" => {
            let mut all = Vec::new();
            match argument(2) {
                "" => std::io::stdin().read_to_end(&mut all).expect("read"),
                path => std::fs::File::open(path).and_then(|mut file| file.read_to_end(&mut all)).expect("read"),
            };
            std::io::stdout().write_all(&all).expect("written");
        }
        "exit" => std::process::exit(i32::try_from(number(2)).unwrap_or(1)),
        // SAFETY: takes a number.
        "raise" => drop(unsafe { raise(i32::try_from(number(2)).unwrap_or(9)) }),
        "sleep" => sleep(number(2)),
        "flood" => loop {
            std::io::stdout().write_all(&[b'x'; 4096]).expect("written");
        },
        "unmount" => {
            let path = std::ffi::CString::new(argument(2)).expect("a path");
            // SAFETY: a string with an end.
            assert_eq!(unsafe { umount2(path.as_ptr(), 0) }, 0);
        }
        "remove" => std::fs::remove_file(argument(2)).expect("removed"),
        "variable" => println!("{}", std::env::var(argument(2)).unwrap_or_default()),
        "touch" => std::fs::write(argument(2), argument(3)).expect("written"),
        "size" => {
            let mut size = [0_u16; 4];
            // SAFETY: TIOCGWINSZ writes four numbers.
            unsafe { ioctl(0, 0x5413, size.as_mut_ptr()) };
            println!("{} {} {}", size[0], size[1], std::io::stdin().is_terminal());
        }
        "now" => println!("{}", SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("later").as_nanos()),
        "hostname" => {
            let mut name = [0; 64];
            // SAFETY: the length is that of the buffer.
            unsafe { gethostname(name.as_mut_ptr(), name.len()) };
            println!("{}", String::from_utf8_lossy(&name).trim_end_matches('\0'));
        }
        "random" => {
            let mut bytes = [0; 16];
            std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).expect("read");
            println!("{bytes:02x?}");
        }
        // Leaves a child to PID 1.
        "orphan" => {
            // SAFETY: one thread, and the child only waits and writes.
            if unsafe { fork() } == 0 {
                // SAFETY: cannot fail.
                let parent = || unsafe { getppid() };
                let first = parent();
                while parent() == first && first != 1 {
                    std::thread::sleep(Duration::from_millis(10));
                }
                let parent = parent();
                std::fs::write(argument(2), parent.to_string()).expect("written");
            }
        }
        "connect" => match std::net::TcpStream::connect(argument(2)) {
            Ok(mut stream) => {
                let mut text = String::new();
                stream.read_to_string(&mut text).expect("read");
                println!("{text}");
            }
            Err(error) => println!("{error}"),
        },
        other => {
            eprintln!("no applet {other}");
            std::process::exit(2);
        }
    }
}
