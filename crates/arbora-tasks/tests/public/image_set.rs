//! Sets of images.

use arbora_tasks::images::ImageSet;

fn set(count: usize) -> ImageSet {
    ImageSet {
        pixels: (0..count as u8).flat_map(|image| [image; 6]).collect(),
        count,
        height: 2,
        width: 3,
        channels: 1,
        labels: Some((0..count as u8).collect()),
    }
}

#[test]
fn a_split_puts_every_image_on_one_side() {
    let (train, test) = set(10).split(3, 5).unwrap();
    train.check().unwrap();
    test.check().unwrap();
    assert_eq!((train.count, test.count), (7, 3));
    let mut all = [train.labels.clone().unwrap(), test.labels.clone().unwrap()].concat();
    all.sort_unstable();
    assert_eq!(all, (0..10).collect::<Vec<u8>>());
    assert_eq!(test.pixels[0], test.labels.as_ref().unwrap()[0]);
    assert_eq!(set(10).split(3, 5).unwrap().1, test);
    assert_ne!(set(10).split(3, 6).unwrap().1, test);
}

#[test]
fn a_split_that_leaves_a_side_empty_is_refused() {
    for held_out in [0, 10, 11] {
        let error = set(10).split(held_out, 0).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("held_out: expected between 1 and one less than the 10 images, got {held_out}")
        );
    }
}

#[test]
fn contradictory_sets_are_refused() {
    let refused = |change: fn(&mut ImageSet)| {
        let mut changed = set(2);
        change(&mut changed);
        changed.check().unwrap_err().to_string()
    };
    let messages = [
        refused(|set| set.count = 0),
        refused(|set| set.width = 0),
        refused(|set| set.channels = 2),
        refused(|set| set.height = 3),
        refused(|set| set.labels = Some(vec![1])),
    ];
    let expected = [
        "count: expected at least 1, got 0",
        "width: expected at least 1, got 0",
        "channels: expected 1 or 3, got 2",
        "pixels: expected count * height * width * channels bytes, got 12",
        "labels: expected 2, got 1",
    ];
    assert_eq!(
        messages,
        expected.map(|message| format!("image set: {message}"))
    );
}

#[test]
fn sets_of_different_sizes_do_not_go_together() {
    let other = ImageSet {
        height: 3,
        width: 2,
        ..set(2)
    };
    assert_eq!(
        set(2).check_same_size(&other).unwrap_err().to_string(),
        "image set: height, width and channels: expected [2, 3, 1], got [3, 2, 1]"
    );
    set(2).check_same_size(&set(5)).unwrap();
}

#[test]
fn an_index_past_the_end_is_refused() {
    let error = set(2).image(2).unwrap_err().to_string();
    assert_eq!(error, "image 2: expected an index below 2");
}
