"""The 33 tables and figures with results: which command makes each, and what decides it.

Diagrams of architectures are no results and are left out. Printed numbers and captions stand in
`tfmammo.evaluation.printed`.
"""

from __future__ import annotations

from dataclasses import dataclass

from tfmammo.apps.report.verdicts import Claim, Floor, Gain, Level, Order
from tfmammo.evaluation.printed import Paper, PrintedItem, read_papers

PRIVATE = "private data: the hospital's mammograms were not published"
DISC = Floor("centred disc", "Dice*")
# segmenter -> the script that trains it, where its own paper starts it from ImageNet's weights
SEGMENTERS = {"FCN-8s": "train/fcn8s.py", "SegNet": "train/segnet.py", "U-Net": ""}
# Without a note behind it: by the published network, and not by a random one.
LPIPS = "LPIPS to its real patch"
MERIT = "JAFROC*figure of merit"
MERIT_P = "p, Holm"
FROM_REAL = "Differences in * from real alone*"
FROM_COPIES = "Differences in * from real + *"
FROM_BASE = "Differences in * copies, which synthetic ones join*"
ALL_DETECTIONS = "all detections*"  # recall by Eq. (6) of the infilling paper


@dataclass(frozen=True)
class Item:
    """A table or figure.

    Attributes:
        paper: The key of the paper.
        name: The key of the item in the paper.
        sources: The commands of configs/report.yaml whose tables are its facts.
        titles: Patterns of the titles of the tables that belong to it.
        picture: "COMMAND/FILE", where FILE is a pattern; "": it has none.
        claims: What the paper finds, in a form that facts can decide.
        floor: The trivial baseline of its models; None where there is none.
        baseline: The trivial baseline in words.
        decided_by: The item that measures what this picture shows; "": itself.
        reason: Why no command makes it; "" where one does.
        note: What a reader must know besides; "" for nothing.
        is_sized: Whether it depends on the pixels of a patch, so that the paper's size alone
            decides it.
    """

    paper: str
    name: str
    sources: tuple[str, ...] = ()
    titles: tuple[str, ...] = ("*",)
    picture: str = ""
    claims: tuple[Claim, ...] = ()
    floor: Floor | None = None
    baseline: str = "none"
    decided_by: str = ""
    reason: str = ""
    note: str = ""
    is_sized: bool = False

    @property
    def key(self) -> str:
        """The name of its facts: "can_table1"."""
        return f"{self.paper}_{self.name}"

    @property
    def printed(self) -> PrintedItem:
        """Label, caption and printed numbers."""
        return read_papers()[self.paper].items[self.name]

    @property
    def place(self) -> str:
        """Where it stands: "CAN, Fig. 2"."""
        return f"{self.source.name}, {self.printed.label}"

    @property
    def source(self) -> Paper:
        """The paper."""
        return read_papers()[self.paper]

    @property
    def commands(self) -> tuple[str, ...]:
        """The commands that make its tables and its picture."""
        return _list_commands(self.sources, self.picture)


@dataclass(frozen=True)
class Extra:
    """A study that none of the papers has, with tools of this package. It has no paper's scale.

    Attributes:
        key: The name of its facts.
        title: Its heading.
        shows: What it asks, in a sentence.
        sources: As of an Item.
        titles: As of an Item.
        picture: As of an Item.
        paper: What `--only` calls all extras.
        reason: "": commands make it.
    """

    key: str
    title: str
    shows: str
    sources: tuple[str, ...]
    titles: tuple[str, ...] = ("*",)
    picture: str = ""
    paper: str = "beyond"
    reason: str = ""

    @property
    def commands(self) -> tuple[str, ...]:
        """The commands that make its tables and its picture."""
        return _list_commands(self.sources, self.picture)


def _list_commands(sources: tuple[str, ...], picture: str) -> tuple[str, ...]:
    of_picture = picture.partition("/")[0]
    return tuple(dict.fromkeys([*sources, *([of_picture] if of_picture else [])]))


def _better_dice(model: str, printed: str = "") -> tuple[Order, ...]:
    return tuple(
        Order(
            f"The Dice coefficient of {model} is higher than that of {other}.",
            model,
            other,
            "Dice*",
            printed=printed,
            pretrained=script,
        )
        for other, script in SEGMENTERS.items()
    )


def _recall_gain(sentence: str, row: str, positive: bool = True) -> Gain:
    beyond = FROM_COPIES if positive else ""
    return Gain(sentence, row, MERIT, FROM_REAL, MERIT_P, positive, beyond=beyond)


CAN = (
    Item(
        "can",
        "fig2",
        ("can_synthesis",),
        picture="can_synthesis/sheet.png",
        claims=(
            Order(
                "Along the edge of the mass CAN's images are closer to the real ones.",
                "CAN",
                "Pix2Pix",
                "SSIM along its edge*",
            ),
        ),
        floor=Floor("two blurred grey values", "SSIM along its edge*"),
        baseline="two blurred grey values, one inside and one outside the mask",
        note="SSIM decides. L1 and PSNR along the edge, in the same table, may say otherwise. The "
        "weights are those of the last step, and a training's SSIM wanders.",
    ),
    Item(
        "can",
        "fig3",
        ("can_defects",),
        picture="can_defects/sheet-random.png",
        claims=(
            Order(
                "CAN's images have less tissue with defects than Pix2Pix's.",
                "CAN",
                "Pix2Pix",
                "Tissue with defects*",
                higher=False,
            ),
        ),
        floor=Floor("two grey values", "Tissue with defects*", higher=False),
        baseline="two grey values, one inside and one outside the mask",
        note="Real tissue has defects by this measure, too. Below its share, fewer is no better.",
    ),
    Item(
        "can",
        "fig4",
        picture="can_segmentation/overlays.png",
        decided_by="can_table1",
        baseline="centred disc",
    ),
    Item(
        "can",
        "table1",
        ("can_segmentation",),
        picture="can_segmentation/boxes.png",
        claims=_better_dice("CAN", "dice"),
        floor=DISC,
        baseline="centred disc, fitted on training masks",
    ),
)

INFILLING = (
    Item(
        "infilling",
        "fig4",
        ("infilling_mammograms",),
        picture="infilling_mammograms/figure-*.png",
        baseline="the same place before the insertion; real masses",
    ),
    Item(
        "infilling",
        "fig5",
        ("infilling_realism",),
        ("*patches of*", "Differences*", "Means in each fold*"),
        "infilling_realism/sheet.png",
        (
            Order(
                "The CRN's masses have richer texture with the margin.",
                "G_crn",
                "G_crn-",
                "finest Haar band*",
            ),
        ),
        floor=Floor("one grey value", "finest Haar band*"),
        baseline="one grey value in the mask; real patches of other patients",
        note="Energy of the finest Haar band in the mass decides. Beyond that of real masses, a "
        "ratio of 1, more energy is noise rather than texture.",
    ),
    Item(
        "infilling",
        "table1",
        ("infilling_realism", "infilling_study"),
        ("*patches of*", "Differences*", "Means in each fold*", "KID*", "*each training"),
        "infilling_realism/sheet.png",
        tuple(
            Order(sentence, better, worse, LPIPS, False, "LPIPS, DDSM")
            for sentence, better, worse in (
                ("The margin lowers LPIPS of the U-Net.", "G_unet", "G_unet-"),
                ("The margin lowers LPIPS of the CRN.", "G_crn", "G_crn-"),
                ("LPIPS of the U-Net is below the CRN's.", "G_unet", "G_crn"),
            )
        )
        + tuple(
            Gain(
                sentence, f"real + * by {better}", ALL_DETECTIONS, f"Differences in * by {worse}, *"
            )
            for sentence, better, worse in (
                ("The margin raises recall with masses of the U-Net.", "unet", "unet_no_margin"),
                ("The margin raises recall with masses of the CRN.", "crn", "crn_no_margin"),
                ("Recall with masses of the U-Net is above that with the CRN's.", "unet", "crn"),
            )
        ),
        floor=Floor("one grey value", LPIPS, higher=False),
        baseline="one grey value in the mask; real patches of other patients",
        note="The paper compares groups of 100 patches and does not say which patch with which. "
        "Ours are pairs of a real patch and its own infilling; LPIPS to other real patches is in "
        "the first table. The paper's recall, Eq. (6), is that of all detections. The patches of "
        "CDD-CESM's copy of 512 px show 23 px around a mass, which are the paper's 100 of the "
        "original mammogram.",
    ),
    Item(
        "infilling",
        "fig6",
        ("infilling_study",),
        ("*false positives per image", "Differences*", "*each training"),
        "infilling_study/report/growth.png",
        (
            Gain(
                "Synthetic mammograms improve on augmented copies.",
                "real + * by unet",
                MERIT,
                FROM_COPIES,
                MERIT_P,
            ),
            Gain(
                "The detection rate, Eq. (6), is above that with real mammograms alone.",
                "real + * by unet",
                ALL_DETECTIONS,
                FROM_REAL,
                beyond=FROM_COPIES,
                printed=("proposed method", "gain in detection rate over real alone, %"),
            ),
            Gain(
                "Copies beyond those that synthetic mammograms join bring no gain.",
                "real + * copies",
                MERIT,
                FROM_BASE,
                MERIT_P,
                is_absent=True,
            ),
        ),
        baseline="augmented copies of the real mammograms",
        note="The paper's 5.03 % are taken for percentage points.",
    ),
    Item("infilling", "fig7", reason=PRIVATE),
    Item(
        "infilling",
        "fig8",
        ("infilling_study",),
        ("*false positives per image", "Differences*", "*each training"),
        "infilling_study/report/froc.png",
        (
            _recall_gain(
                "The FROC curve with synthetic mammograms is above that of real ones alone.",
                "real + * by unet",
            ),
        ),
        baseline="as many augmented copies as both together",
        note="Synthetic mammograms join copies. They are compared with these copies alone, and "
        "with as many copies as both together.",
    ),
    Item("infilling", "fig9", reason=PRIVATE),
)

BLENDING = (
    Item(
        "blending",
        "fig4",
        ("blending_study",),
        picture="blending_study/report/froc.png",
        claims=(
            _recall_gain("Blended mammograms improve the detector.", "real + * by blending"),
            _recall_gain("Poisson editing makes the detector worse.", "real + * by poisson", False),
        ),
        baseline="real mammograms alone; as many augmented copies",
    ),
    Item(
        "blending",
        "fig5",
        ("blending_evaluation", "blending_mammograms"),
        picture="blending_evaluation/sheet.png",
        claims=(
            Order(
                "Blended patches are harder to tell from real ones than those without the prior.",
                "blending",
                "noise prior",
                "told from real patches*",
                higher=False,
            ),
            Order(
                "Blended lesions have more contrast than those by Poisson editing.",
                "blending",
                "poisson",
                "contrast of the lesion",
            ),
        ),
        baseline="the lesion pasted in; real patches",
        note="The noise prior's L_S asks for the real lesion's gradients, which the network does "
        "not see. The row without L_S is the other reading.",
    ),
    Item(
        "blending",
        "table1",
        ("blending_study",),
        ("*false positives per image",),
        "blending_study/report/froc.png",
        (
            Level(
                "The true positive rate at 0.5 false positives per image is reached.",
                "real + * by blending",
                "0.5, %",
                ("blending", "TPR at 0.5"),
                factor=100,
            ),
            Level(
                "The true positive rate at 0.8 false positives per image is reached.",
                "real + * by blending",
                "0.8, %",
                ("blending", "TPR at 0.8"),
                factor=100,
            ),
        ),
        baseline="real mammograms alone",
        note="Seconds per image differ from run to run, so they are no facts; a study writes them "
        "to report/seconds.csv.",
    ),
)

CONTEXTUAL = (
    Item(
        "contextual",
        "fig1",
        ("contextual_study",),
        ("*Score of a lesion*", "*told from normal*"),
        "contextual_study/report/figure-pairs.png",
        tuple(
            Gain(
                f"Patches with an added {target} are told from those whose lesion was removed.",
                f"{target} added",
                "AUC",
                "*told from normal*",
                "p",
                level=0.5,
                beyond_row=f"as much brighter as {target}, evenly",
            )
            for target in ("mass", "calcification")
        )
        + tuple(
            Gain(
                f"The edits of the generator {target} move the classifier's score as intended.",
                f"{target}*",
                "change",
                "*Score of a lesion*",
                "p",
                positive=target != "removal",
                beyond_edit="change beyond that",
            )
            for target in ("mass", "calcification", "removal")
        ),
        baseline="as much brightness at the same place, spread evenly",
        note="The figure shows pictures. These claims are our tests of them: by classifiers of "
        "real patches, beyond what the same brightness does when it is spread evenly. A classifier "
        "trained like these, from another seed, chose the generators' weights, on other patients.",
    ),
    Item("contextual", "fig3", picture="contextual_contiguous/figure-contiguous.png"),
    Item(
        "contextual",
        "table1",
        ("contextual_study",),
        ("*test patches*", "*Controls*", "*Scores by the classifiers*"),
        "contextual_study/report/figure-roc.png",
        (
            Gain(
                "Half of the patches being synthetic at first raises the area under the curve.",
                "50 %",
                "difference",
                "*test patches*",
                "p",
            ),
            Gain(
                "All patches being synthetic at first lowers it.",
                "100 %",
                "difference",
                "*test patches*",
                "p",
                positive=False,
            ),
        ),
        baseline="mean grey value alone",
        note="A gain as small as the paper's can't be seen with so few patients. On phantoms, by "
        "the paper's falling share, not even real patches of further patients bring a gain: see "
        "the contextual GAN on phantoms, below.",
    ),
    Item("contextual", "fig4", picture="contextual_study/report/figure-tsne.png"),
    Item(
        "contextual",
        "fig5",
        ("contextual_study",),
        ("*change sides*",),
        "contextual_study/report/figure-moves.png",
        decided_by="contextual_table1",
        baseline="trainings that differ in their seed alone",
    ),
    Item(
        "contextual",
        "fig6",
        picture="contextual_study/report/figure-cases.png",
        decided_by="contextual_table1",
    ),
)

CGAN = (
    Item(
        "cgan",
        "detection",
        ("cgan_detectors",),
        picture="cgan_detectors/froc.png",
        baseline="random boxes",
        note="The paper calls SSD the best of the detectors in a table that its text, as this "
        "project has it, does not hold. Which detectors those were is not known, so nothing of it "
        "is reproduced or contradicted.",
    ),
    Item("cgan", "croppings", picture="cgan_frames/croppings.png"),
    Item(
        "cgan",
        "morphology",
        ("cgan_frames",),
        ("Before and after morphology*", "Differences of every pair"),
        "cgan_frames/morphology-*.png",
        tuple(
            Order(
                f"Post-processing raises the Dice coefficient, {frame} frames.",
                f"{frame}: cGAN + post-processing",
                f"{frame}: cGAN",
                "Dice*",
                is_one_network=True,
            )
            for frame in ("full", "loose", "tight")
        ),
        baseline="the mask before post-processing",
        is_sized=True,  # its kernels are of 2 and 3 px
    ),
    Item("cgan", "losses", picture="cgan_losses/losses.png"),
    Item(
        "cgan",
        "table",
        ("cgan_segmentation", "cgan_frames"),
        picture="cgan_segmentation/roc.png",
        claims=_better_dice("cGAN"),
        floor=DISC,
        baseline="centred disc, fitted on training masks",
        note="Where no network is better than the disc, none can be better than another. Beyond "
        "the papers, below, cGAN and U-Net stand beside each other on CBIS-DDSM's larger patches.",
    ),
    Item(
        "cgan",
        "boxes",
        picture="cgan_segmentation/boxes.png",
        decided_by="cgan_table",
        baseline="centred disc",
    ),
    Item(
        "cgan",
        "samples",
        picture="cgan_frames/overlays.png",
        decided_by="cgan_table",
        baseline="centred disc",
    ),
    Item(
        "cgan",
        "models",
        picture="cgan_segmentation/overlays.png",
        decided_by="cgan_table",
        baseline="centred disc",
    ),
    Item(
        "cgan",
        "confusion",
        ("cgan_shape_evaluation",),
        ("*onfusion*", "*called*"),
        "cgan_shape_evaluation/figure-confusion-*.png",
        decided_by="cgan_shape",
        baseline="most frequent shape",
    ),
    Item(
        "cgan",
        "shape",
        ("cgan_shape_evaluation",),
        picture="cgan_shape_evaluation/figure-confusion-*.png",
        claims=(
            Level("The accuracy is reached.", "Shape CNN", "Accuracy*", ("Shape CNN", "accuracy")),
        ),
        floor=Floor("most frequent", "Accuracy*"),
        baseline="most frequent shape",
    ),
    Item(
        "cgan",
        "roc",
        picture="cgan_shape_evaluation/figure-roc-*.png",
        decided_by="cgan_shape",
        baseline="chance, 0.5",
    ),
    Item("cgan", "subtypes", reason=PRIVATE),
    Item("cgan", "failures", picture="cgan_frames/failures-*.png"),
)

ITEMS: tuple[Item, ...] = (*CAN, *INFILLING, *BLENDING, *CONTEXTUAL, *CGAN)
EXTRAS = (
    Extra(
        "stress",
        "Stress test of detectors",
        "Inserted lesions from faint to plain. Do they rank detectors as lesions do that none of "
        "the detectors saw? The detectors differ in their steps alone: they are meant to differ in "
        "what they find, so that curves of the shorter ones need not be flat.",
        ("stress",),
        ("Detectors on lesions*", "Does the stress score*"),
        "stress/curves.png",
    ),
    Extra(
        "can_lattice",
        "CAN's lattice",
        "What makes the lattice in CAN's images? One change at a time, all else as printed.",
        ("can_lattice",),
        picture="can_lattice/sheet-random.png",
    ),
    Extra(
        "can_texture",
        "Texture without a lattice",
        "CAN changed until its masses have the texture of real ones and no lattice: a "
        "discriminator of 70 px, resize-convolutions, noise for G's last layers, and an L1 term "
        "of means. What does each step give?",
        ("can_texture",),
        picture="can_texture/sheet.png",
    ),
    Extra(
        "can_unet",
        "CAN and the U-Net, two more trainings each",
        "Table I leaves open which of the two outlines better: three trainings of the U-Net differ "
        "by more than the two networks do. Do two more of each tell them apart?",
        ("can_unet_more",),
        picture="can_unet_more/boxes.png",
    ),
    Extra(
        "can_rates",
        "The baselines without normalization, at half the learning rate",
        "U-Net and FCN-8s take CAN's learning rate in Table I, 2e-4. Are they better at 1e-4? The "
        "same patches, networks and steps; two trainings of the U-Net, one of FCN-8s.",
        ("can_rates",),
    ),
    Extra(
        "can_leak",
        "The leak of CAN's protocol",
        "The paper turns and mirrors its patches first and draws the test set afterwards. What is "
        "that worth beside Table I, whose patients were never seen?",
        ("can_leak",),
    ),
    Extra(
        "infilling_all",
        "Infilling on all patches",
        "Table 1 has 100 patches, as the paper's. Do all patches of the archive, by the same "
        "networks, decide what the margin gives?",
        ("infilling_all",),
        picture="infilling_all/sheet.png",
    ),
    Extra(
        "audit",
        "Memory audit of generators",
        "Can anybody tell from a generator which patients it was trained on?",
        ("audit_can", "audit_infilling"),
    ),
    Extra(
        "flow",
        "A rectified flow beside the GANs",
        "What does adversarial training still gain? The same masses of patients never seen, "
        "rendered again by a flow, by the infilling GANs and by CAN.",
        ("flow_realism",),
        picture="flow_realism/sheet.png",
    ),
    Extra(
        "flow_tissue",
        "A rectified flow beside blending",
        "Lesions in tissue that had none, of patients never seen: inpainted, blended, cloned.",
        ("flow_blending",),
        picture="flow_blending/sheet.png",
    ),
    Extra(
        "detection_real",
        "Detection on real mammograms",
        "The detection studies of infilling and blending take phantoms at this scale. What do "
        "copies and blended lesions give on real mammograms, and how many false positives do "
        "normal ones get? Half of the patients train, the others test, with all 48 normal "
        "mammograms. Whose these are is not known, so they count as one patient, and nothing says "
        "how sure their false positives are.",
        ("detection_real",),
        picture="detection_real/report/froc.png",
    ),
    Extra(
        "contextual_phantoms",
        "Contextual GAN on phantoms",
        "A positive control: lesions of phantoms are simple, and their normal mammograms are "
        "normal. Do the edits swap the classes there, and does a classifier gain?",
        ("control_study",),
        picture="control_study/report/figure-pairs.png",
    ),
    Extra(
        "contextual_constant",
        "Contextual GAN on phantoms, a share that does not fall",
        "Half of the patches are synthetic to the end of the classifier's training, where the "
        "paper's share falls. Does a classifier of few real patches gain?",
        ("control_constant",),
    ),
    Extra(
        "segmenters",
        "Segmenters of today beside CAN",
        "CAN, cGAN and the U-Net of 2015 beside a residual U-Net and nnU-Net: the same patches, "
        "the same patients never seen.",
        ("segmenters",),
        picture="segmenters/boxes.png",
    ),
    Extra(
        "adversary",
        "What the cGAN's discriminator is worth",
        "The same generator trained on its Dice loss alone, and with a discriminator besides.",
        ("adversary",),
        picture="adversary/boxes.png",
    ),
)
WITH_EXTRAS: tuple[Item | Extra, ...] = (*ITEMS, *EXTRAS)


def find_item(key: str) -> Item:
    """Return an item by its key, as "can_table1"."""
    return next(item for item in ITEMS if item.key == key)
