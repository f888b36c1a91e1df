"""What the rows and columns of the report mean, and which numbers stand together."""

from __future__ import annotations

from typing import NamedTuple

from evaluation.numbers import BEFORE, COPY, GENERATED, HELD_OUT, PASTED, REAL_ONLY, RENDERED, Metric


class Section(NamedTuple):
    """A table: the question it answers; its columns, each with its explanation, where {fid} is the name of
    the Frechet distance; and how to read it."""

    title: str
    columns: dict[Metric, str]
    text: str = ""


ABOUT_ROWS = {
    GENERATED: "the images of --fake",
    BEFORE: "the same as they were first drawn, before any was thrown away: what the generator draws",
    RENDERED: "the training photos after a pass through the base model's VAE, which redraws every pixel: the "
              "best that a generator on this base can reach",
    HELD_OUT: "real photos that the generator, or each classifier, was not trained on; for distances, where "
              "these are unknown, one half of the real photos against the other",
    PASTED: "real damage cut out of training photos and laid over good ones: what a generator has to beat",
    COPY: "the training photos themselves: what a generator that only copies would get",
    REAL_ONLY: "training on real photos alone",
}
SECTIONS = (
    Section("Do they show the damage that was asked for?", {
        Metric.N: "how many images the row has",
        Metric.DCA: "defect classification accuracy: the share of images that classifiers, which learnt from "
                    "real photos (where the base is known, as its VAE draws them), take for the damage type "
                    "asked for",
        Metric.DCA_RATIO: "DCA over its ceiling, that of row through the VAE or else held-out real: 1 is "
                          "recognised as often as real photos; above 1 is easier, as copies are, or chance",
        Metric.SHARP_DCA: "DCA by classifiers of the photos as they are, which judge soft pictures badly",
        Metric.SHARP_DCA_RATIO: "the same over its ceiling, that of row held-out real",
        Metric.PLACES: "connected damaged regions an image, the mean",
        Metric.SEVERAL_PLACES: "the share of images with more than one",
    }, "A damage type of which fewer than 70 % of the real photos are recognised cannot be judged. Brackets "
       "count in which photos the classifiers learnt from."),
    Section("Are they copies?", {
        Metric.COPIES: "the share of images at most half the usual distance from a training photo",
        Metric.NEAREST_FEATURE: "distance to the nearest training photo in a network's features, over the "
                                "usual one of a real photo to its nearest other one; the median",
        Metric.NEAREST_PIXEL: "the same in pixels, to any flip or quarter turn of the training photo",
    }, "About 1 is as new as a real photo."),
    Section("Are they like the real ones as a whole?", {
        Metric.FID: "Frechet distance of a network's features, 0 for equal sets: of few images it is mostly "
                    "noise, and it falls as their number grows",
        Metric.FID_EQUAL: "the same with N images on each side: compare rows by this one",
        Metric.EQUAL_N: "how many that are",
        Metric.KID: "another distance of the same features, on average 0 for images like the real ones "
                    "however many there are; it may be negative",
        Metric.CMMD: "the like of KID in the features of CLIP",
    }, "Distances to the training photos, smaller is nearer. A copy of the training set is the nearest."),
    Section("And around the damage?", {
        Metric.CROP_FID: "{fid} of the square around each damage",
        Metric.CROP_FID_EQUAL: "the same with equal numbers on both sides",
        Metric.CROP_KID: "KID of these squares",
    }, "Most of a whole picture is background."),
    Section("Are they varied?", {
        Metric.PRECISION: "the share of the images that lie among the real ones",
        Metric.RECALL: "the share of the real ones that lie among the images",
        Metric.DENSITY: "how many real ones lie around an image, over what is usual among real ones",
        Metric.COVERAGE: "the share of the real ones with an image near them",
        Metric.DIVERSITY: "mean distance between two images of the row over that between two training "
                          "photos: 1 is as varied",
    }),
    Section("Do they help?", {
        Metric.ACCURACY: "of a classifier that learns from real photos and the row's images, on real photos "
                         "that it was not trained on",
        Metric.ACCURACY_GAIN: "points above training on real photos alone: an interval that holds 0 shows no "
                              "help",
        Metric.IOU: "of a segmenter that learns from the same: overlap of what it marks with the mask "
                    "(intersection over union)",
        Metric.IOU_GAIN: "points above training on real photos alone",
    }),
    Section("Did they change what the mask says, and nothing else?", {
        Metric.CHANGE_INSIDE: "mean change of a pixel inside the mask, in levels of 255",
        Metric.CHANGE_OUTSIDE: "the same outside the mask",
        Metric.MASK_IOU: "overlap of the visibly changed pixels with the mask (intersection over union)",
        Metric.BACKGROUND_PSNR: "how equal the rest is, in decibels (PSNR); 99 is bit for bit",
        Metric.SEAM_RATIO: "how sharp the image is along the mask's border, over the photo before; damage "
                           "has edges of its own, so compare with cut and paste",
    }, "Of images painted on a known photo; brackets hold 95 % of the images."),
)
