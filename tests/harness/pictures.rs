//! PNG files that the tests make themselves.

use tonic::codegen::Bytes;

/// Noise of this size, the same for the same seed: its file is as long as its pixels.
pub(crate) fn png(width: u32, height: u32, seed: u32) -> Bytes {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    let row = |_| std::iter::once(0).chain((0..width * 3).map(|_| noise()).collect::<Vec<_>>());
    let rows: Vec<u8> = (0..height).flat_map(row).collect();
    png_claiming(width, height, &rows)
}

/// A file whose header says this size, whatever its rows hold: a filter's number, 0, and three bytes a pixel in each.
pub(crate) fn png_claiming(width: u32, height: u32, rows: &[u8]) -> Bytes {
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut header = [width.to_be_bytes(), height.to_be_bytes()].concat();
    header.extend([8, 2, 0, 0, 0]); // 8 bits, RGB, deflate, the one filter method, not interlaced
    for (kind, data) in [(b"IHDR", &header), (b"IDAT", &stored(rows)), (b"IEND", &Vec::new())] {
        file.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        let checked = [kind, data.as_slice()].concat();
        file.extend(&checked);
        file.extend(crc32(&checked).to_be_bytes());
    }
    file.into()
}

/// A zlib stream that compresses nothing.
fn stored(data: &[u8]) -> Vec<u8> {
    let mut stream = vec![0x78, 0x01];
    let blocks = data.chunks(65535);
    let last = blocks.len().max(1) - 1;
    for (index, block) in blocks.enumerate() {
        let length = block.len() as u16;
        stream.push(u8::from(index == last));
        stream.extend(length.to_le_bytes());
        stream.extend((!length).to_le_bytes());
        stream.extend(block);
    }
    let (a, b) = data.iter().fold((1_u32, 0_u32), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % 65521;
        (a, (b + a) % 65521)
    });
    stream.extend((b << 16 | a).to_be_bytes());
    stream
}

/// The checksum of PNG's chunks.
fn crc32(data: &[u8]) -> u32 {
    let bit = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    !data.iter().fold(!0, |crc: u32, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| bit(crc)))
}
