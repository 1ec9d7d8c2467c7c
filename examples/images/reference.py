"""A support vector machine (SVM) on the same digits, by scikit-learn: `python -m examples.images.reference`."""

from sklearn.svm import SVC

from examples.images.held_out import Data, load_part


def svm_accuracy(data: Data) -> float:
    """Share of the held-out digits that an SVM fitted on the training digits gets right.

    scikit-learn's own kernel and kernel width; of C = 1, 10 and 100 10 is as good as any in validation.
    """
    images, labels = load_part(data, "train")
    most = images.max()
    known = SVC(C=10).fit(images.reshape(len(images), -1) / most, labels)
    queried, true = load_part(data, "held_out")
    return float(known.score(queried.reshape(len(queried), -1) / most, true))


def main() -> None:
    """Print the accuracy on each data set's held-out digits."""
    datasets: tuple[Data, ...] = ("digits", "mnist")
    for data in datasets:
        print(f"{data}: SVM, accuracy {svm_accuracy(data):.4f}")


if __name__ == "__main__":
    main()
